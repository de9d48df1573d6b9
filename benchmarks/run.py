"""All benchmarks, one after another: what ``make bench`` runs, with the arguments of `cpu`."""

from benchmarks import accuracy, cost, cpu


def main() -> None:
    """Cost first, in fresh processes; then speed, then accuracy."""
    cost.main([])
    cpu.main()
    accuracy.main([])


if __name__ == "__main__":
    main()
