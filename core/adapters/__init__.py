"""Adapters on a model: put them on, switch, combine, merge, and take them off.

A method is one file of this folder that registers a subclass of `Adapter`; importing the package finds them all.

    inject.py   adding and removing        switch.py   which ones run, for the model or per row
    targets.py  which modules are meant    merging.py  into the weights and out again
    host.py     the wrapper in the model   state.py    the tensors by PEFT's names
    base.py     what a method provides     rule.py     what it does in a step beside the gradient
    lora.py rslora.py ...  the methods; what each says of itself is in core/methods/
"""

from importlib import import_module
from pkgutil import iter_modules

from core.adapters.base import Adapter, adapters
from core.adapters.inject import adapter_config, adapter_names, inject, remove_adapter, training_rule
from core.adapters.merging import merge, unmerge
from core.adapters.state import adapter_state_dict, load_adapter_state_dict
from core.adapters.switch import adapter_parameters, adapter_rows, set_adapter

for _file in sorted(iter_modules(__path__), key=lambda found: found.name):
    import_module(f"{__name__}.{_file.name}")

names = adapters.names

__all__ = [
    "Adapter",
    "adapter_config",
    "adapter_names",
    "adapter_parameters",
    "adapter_rows",
    "adapter_state_dict",
    "adapters",
    "inject",
    "load_adapter_state_dict",
    "merge",
    "names",
    "remove_adapter",
    "set_adapter",
    "training_rule",
    "unmerge",
]
