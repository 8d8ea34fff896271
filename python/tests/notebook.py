"""Runs the code cells of a notebook in this Python, as Jupyter would: `notebook.py FILE`. What a cell ends with is shown."""

import ast
import json
import sys


def run(path):
    with open(path, encoding="utf-8") as file:
        cells = [cell for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        tree = ast.parse("".join(cell["source"]), f"cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if last:
            shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
            as_html = getattr(shown, "_repr_html_", None)
            print(as_html() if as_html else repr(shown))
        print(f"-- cell {number} ran", flush=True)


if __name__ == "__main__":
    run(sys.argv[1])
