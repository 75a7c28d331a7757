"""Puts ours.jsonl and peer.jsonl of benchmarks/gpu_7b.sh into one table with ratios."""

import json
import sys
from pathlib import Path


def lines(path: Path) -> list[dict]:
    """JSON lines of a file that may hold others, or not exist."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def peer_figures(rows: list[dict]) -> dict[str, float]:
    """The peer's best figure of each kind of work, in our unit."""
    figures: dict[str, float] = {}

    def best(what: str, value: float):
        figures[what] = max(figures.get(what, 0.0), value)

    for row in rows:
        what = row.get("what", "")
        if what.startswith("score") and "pairs_s" in row:
            best("score40", row["pairs_s"])
        elif what == "decode" and "tok_s" in row:
            names = {1: ["decode1"], 32: ["decode32", "decode_shared"]}[row["batch"]]
            for name in names:
                best(name, row["tok_s"])
        elif what == "train40_conversation" and "samples_s" in row:
            best("train40", 40 * row["samples_s"])
        elif what.startswith("train") and "tok_s" in row:
            best("train", row["tok_s"])
            best("train40", row["samples_s"])
    return figures


def main() -> None:
    """Prints the table."""
    folder = Path(sys.argv[1])
    peer = peer_figures(lines(folder / "peer.jsonl"))
    print(
        f"{'name':<16} {'what':<14} {'setting':<26} {'figure':>18} {'peer':>9} {'ratio':>6} {'s':>8} {'lo..hi':>17} {'peak GiB':>8} {'compile':>8}"
    )
    for row in lines(folder / "ours.jsonl"):
        what = row.get("what", "")
        setting = f"b{row.get('batch', '?')} {row.get('remat', '')} {row.get('attention', '')}"
        setting += " scan" * bool(row.get("scan_layers")) + f" {row.get('precision', '')}"
        if "s" not in row:
            said = row.get("error") or row.get("skipped") or ""
            print(f"{row.get('name', what):<16} {what:<14} {setting:<26} {said[:80]}")
            continue
        unit = "pairs_s" if what in ("train40", "score40") else "tokens_s"
        theirs = peer.get(what)
        ratio = f"{row[unit] / theirs:.2f}" if theirs else "-"
        print(
            f"{row.get('name', ''):<16} {what:<14} {setting:<26} {row[unit]:>10.1f} {unit:<8}"
            f"{theirs if theirs else float('nan'):>9.1f} {ratio:>6} {row['s']:>8.4f} {row['lo']:>8.4f}..{row['hi']:<7.4f}"
            f"{row.get('peak_gib') or float('nan'):>8.1f} {row.get('compile_s', float('nan')):>8.1f}"
        )


if __name__ == "__main__":
    main()
