"""Who else was at work on this machine while a bench ran, and which machine it is."""
import os
import resource
import time


def _ticks():
    with open("/proc/stat") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return {"busy": user + nice + system + irq + softirq, "steal": steal, "all": user + nice + system + idle + iowait + irq + softirq + steal}


def _own_seconds():
    """Of this process and all its children that ended."""
    return sum(usage.ru_utime + usage.ru_stime
               for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


def cpu_name():
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


class Watch:
    """From its creation until `report`, which must come after the children's ends."""

    def __init__(self):
        self.load = os.getloadavg()[0]
        self.ticks, self.own, self.start = _ticks(), _own_seconds(), time.monotonic()

    def report(self):
        ticks = _ticks()
        spent = {name: ticks[name] - self.ticks[name] for name in ticks}
        seconds = spent["all"] / os.sysconf("SC_CLK_TCK") or 1
        others = spent["busy"] / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self.own)
        return describe(self.load, 100 * spent["steal"] / (spent["all"] or 1), max(0, 100 * others / seconds),
                        time.monotonic() - self.start, os.cpu_count())


def describe(load, steal_percent, others_percent, seconds, cpus):
    """What goes beside the figures. Loaded: somebody else took so much that figures of this run are too low."""
    reasons = []
    if load > 0.5 * cpus:
        reasons.append(f"the load average was {load:.1f} at its start")
    if steal_percent > 2:
        reasons.append(f"the host took {steal_percent:.1f} % of the CPUs (steal)")
    if others_percent > 5:
        reasons.append(f"other processes took {others_percent:.1f} % of the CPUs")
    return {"load_before": round(load, 2), "steal_percent": round(steal_percent, 2), "others_percent": round(others_percent, 2),
            "seconds": round(seconds, 1), "cpus": cpus, "loaded": "; ".join(reasons)}
