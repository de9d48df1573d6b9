"""Running functions elsewhere: processes of this machine, or a cluster; lost work is redone."""
