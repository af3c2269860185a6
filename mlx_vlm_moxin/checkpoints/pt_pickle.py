"""Reads the pickle of a ``torch.save`` file opcode by opcode, without Python's unpickler.

Python's unpickler hashes, compares and calls whatever the file specifies, so a few hundred
bytes can hang or crash the process. This reader supports the opcodes that torch.save writes,
and builds dicts, lists, tuples, strings, numbers and ``LazyTensor``. Anything else is an error.

Format: ``pickletools`` of Python. What torch.save writes: ``torch/_utils.py`` and
``torch/_weights_only_unpickler.py`` of PyTorch.
"""

import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

from mlx_vlm_moxin.checkpoints.tensors import LazyTensor

# A checkpoint with 1,000 tensors has about 45,000 opcodes and at most 20 levels of nesting.
_MAX_OPCODES = 1_000_000
_MAX_OBJECTS = 100_000
_MAX_DEPTH = 40
_MAX_INTEGER = 2**63

_VALUES = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_ARGUMENTS = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"]
)
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_IGNORED = frozenset(["PROTO", "FRAME"])

# What a pickle may reference: (module, name) -> function or value.
Functions = dict[tuple[str, str], Any]
PersistentLoad = Callable[[Any], Any]


class PickleReader:
    """Reads one pickle once.

    Args:
        functions: the globals that the pickle may reference. Callables may be called; other
            values are passed on to ``persistent_load``.
        persistent_load: returns the object for a persistent id.
    """

    def __init__(self, functions: Functions, persistent_load: PersistentLoad):
        self._functions = functions
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # Levels of nesting in each container, including itself, by the container's id().
        self._depths: dict[int, int] = {}
        # Containers that are part of another one. They must not change any more, which prevents
        # cycles and undetected growth of nesting.
        self._contained: set[int] = set()
        self._objects = 0

    def read(self, data: bytes) -> Any:
        """Build the object that the pickle describes.

        Raises:
            ValueError, IndexError: naming what a state dict does not need.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == _MAX_OPCODES:
                raise ValueError(f"a pickle of more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                break
            self._execute(opcode.name, argument)
        return self._pop()

    def _execute(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _VALUES:
            self._stack.append(_VALUES[name])
        elif name in _CONTAINERS:
            self._push_container(_CONTAINERS[name](), ())
        elif name not in _IGNORED:
            if name not in self._OPERATIONS:
                raise ValueError(f"the opcode {name}, which no state dict needs")
            self._OPERATIONS[name](self, argument)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("a pickle that pops more from its stack than it pushed")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _count_object(self) -> None:
        self._objects += 1
        if self._objects > _MAX_OBJECTS:
            raise ValueError(f"more than {_MAX_OBJECTS} objects")

    def _push_container(self, container: Any, items: tuple | list) -> None:
        self._count_object()
        # A container that was freed may have had this id() before.
        self._contained.discard(id(container))
        self._depths[id(container)] = 1
        self._note_items(container, items)
        self._stack.append(container)

    def _note_items(self, container: Any, items: tuple | list) -> None:
        for item in items:
            if isinstance(item, (dict, list, tuple)):
                self._contained.add(id(item))
                depth = self._depths.get(id(item), 1) + 1
                if depth > _MAX_DEPTH:
                    raise ValueError(f"more than {_MAX_DEPTH} levels of containers")
                self._depths[id(container)] = max(depth, self._depths[id(container)])

    def _extend(self, kind: type, items: list[Any]) -> Any:
        """The container of type ``kind`` on the stack, after checking that it accepts ``items``."""
        container = self._stack[-1]
        is_open = type(container) is kind and id(container) not in self._contained
        if not is_open or any(item is container for item in items):
            raise ValueError("items added to something that is not an open container")
        self._note_items(container, items)
        return container

    # One method per opcode; each receives the opcode's argument.

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: None) -> None:
        items = tuple(self._pop_to_mark())
        self._push_container(items, items)

    def _push_tuple(self, size: int) -> None:
        items = tuple([self._pop() for _ in range(size)][::-1])
        self._push_container(items, items)

    def _append(self, _: None) -> None:
        item = self._pop()
        self._extend(list, [item]).append(item)

    def _appends(self, _: None) -> None:
        items = self._pop_to_mark()
        self._extend(list, items).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        for key in keys:
            # Strings, and the integers of an optimizer's state. Hashing other keys could take
            # forever.
            if type(key) is not str and not (type(key) is int and abs(key) < _MAX_INTEGER):
                raise ValueError("a dictionary key that is not a string")
        self._extend(dict, values).update(zip(keys, values, strict=True))

    def _setitem(self, _: None) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _setitems(self, _: None) -> None:
        self._set_items(self._pop_to_mark())

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError("a reference to something that it does not contain")
        self._stack.append(self._memo[index])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_global(module, name)

    def _stack_global(self, _: None) -> None:
        name = self._pop()
        module = self._pop()
        if type(module) is not str or type(name) is not str:
            raise ValueError("a global whose name is not a string")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if (module, name) not in self._functions:
            if module.startswith("torch") and name.endswith("Storage"):
                raise ValueError(f"a tensor of an unknown dtype ({module[:50]}.{name[:50]})")
            raise ValueError(f"the global {module[:50]}.{name[:50]}, which no state dict needs")
        self._stack.append(self._functions[module, name])

    def _push_persistent(self, _: None) -> None:
        self._count_object()
        self._stack.append(self._persistent_load(self._pop()))

    def _reduce(self, _: None) -> None:
        arguments = self._pop()
        function = self._pop()
        if type(arguments) is not tuple or not callable(function):
            raise ValueError("a call of something that is not a function")
        result = function(*arguments)
        if type(result) is dict:
            self._push_container(result, ())
        else:
            self._count_object()
            self._stack.append(result)

    def _build(self, _: None) -> None:
        self._pop()
        # Drop attributes of a state dict, such as `_metadata`.
        if type(self._stack[-1]) is not dict:
            what = "a tensor" if isinstance(self._stack[-1], LazyTensor) else "an object"
            raise ValueError(f"{what} whose attributes are changed")

    _OPERATIONS: ClassVar[dict[str, Callable[["PickleReader", Any], None]]] = {
        "MARK": _mark,
        "TUPLE": _tuple,
        "TUPLE1": lambda self, _: self._push_tuple(1),
        "TUPLE2": lambda self, _: self._push_tuple(2),
        "TUPLE3": lambda self, _: self._push_tuple(3),
        "APPEND": _append,
        "APPENDS": _appends,
        "SETITEM": _setitem,
        "SETITEMS": _setitems,
        "BINPUT": _put,
        "LONG_BINPUT": _put,
        "MEMOIZE": _memoize,
        "BINGET": _get,
        "LONG_BINGET": _get,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "BINPERSID": _push_persistent,
        "REDUCE": _reduce,
        "BUILD": _build,
    }
