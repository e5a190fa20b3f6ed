"""The cells of a notebook whose stage a run skips: they do nothing, so that whoever runs them all meets no failure."""

from __future__ import annotations

import ast
import builtins
import sys
from typing import Any

from labkit.params import assigned_names, names


class _PassOver(ast.NodeTransformer):
    """Empties each cell that IPython runs, but those of parameters and those that open a lab."""

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.Module):
            return node
        source = ast.unparse(node)
        if "from_notebook" not in source and not _is_of_parameters(node, assigned_names(source)):
            node.body = []
        return node


def _is_of_parameters(cell: ast.Module, assigned: set[str]) -> bool:
    """Whether a cell assigns parameters, and needs nothing of cells that are passed over: a variable may be called like one."""
    found = [each for each in ast.walk(cell) if isinstance(each, ast.Name)]
    read = {each.id for each in found if isinstance(each.ctx, ast.Load)}
    own = assigned | {each.id for each in found if not isinstance(each.ctx, ast.Load)}
    return bool(assigned & set(names())) and read <= {*own, *names(), *dir(builtins)}


def pass_over_cells(why: str) -> None:
    """Say `why` the notebook's stage is skipped, and have its later cells do nothing until a lab is opened anew.

    With no reason they are run as usual; outside of a notebook nothing happens.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if shell is None:
        return
    shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, _PassOver)]
    if why:
        shell.ast_transformers.append(_PassOver())
        display(Markdown(f"**{why}** The cells below do nothing."))
