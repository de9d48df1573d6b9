"""All benchmarks, one after another: what ``make bench`` runs."""

from benchmarks import accuracy, cost, networks


def main() -> None:
    """Cost first, in fresh processes; then latency, then accuracy."""
    cost.main([])
    networks.main([])
    accuracy.main([])


if __name__ == "__main__":
    main()
