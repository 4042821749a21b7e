"""Reports of figures."""


def table(figures: dict) -> str:
    """Figures with their intervals, one a line: shares in percent, PSNR in dB."""
    lines = []
    for name, value in figures.items():
        interval = figures.get(f"{name}_interval")
        if interval is None:
            continue
        if "psnr" in name:
            lines.append(f"{name:28} {value:6.2f} dB  [{interval[0]:.2f}, {interval[1]:.2f}]")
        else:
            lines.append(f"{name:28} {100 * value:5.1f} %   [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")
    return "\n".join(lines)
