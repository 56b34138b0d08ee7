"""The step time on many GPUs:  python -m dev.scaling  prints the tables, --write updates them in docs/ and draws docs/scaling.png."""

import argparse

from dev.scaling.report import blocks, write


def main():
    parser = argparse.ArgumentParser(prog="python -m dev.scaling", description=__doc__)
    parser.add_argument("--write", action="store_true", help="update docs/scaling.md, docs/many_gpus.md and docs/scaling.png")
    if parser.parse_args().write:
        write()
        return
    for tables in blocks().values():
        for name, content in tables.items():
            print(f"{name}\n\n{content}\n")


if __name__ == "__main__":
    main()
