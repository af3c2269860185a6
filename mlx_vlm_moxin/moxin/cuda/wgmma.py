"""The text of Hopper's instruction for products of warpgroups, which names every register."""


def macros(columns: int, a_in_registers: bool = True) -> dict[str, str]:
    """Macros of kernels/wgmma.cuh and tower_warpgroups.cuh for products ``[64, columns]``.

    Args:
        columns: multiple of 8, up to 256.
        a_in_registers: otherwise A is in shared memory, as B is.
    """
    count = columns // 2
    inputs = f"%{count}, %{count + 1}"
    if a_in_registers:
        inputs = f"{{{', '.join(f'%{count + index}' for index in range(4))}}}, %{count + 4}"
    return {
        "WGMMA_COLUMNS": str(columns),
        "WGMMA_SHAPE": f'"m64n{columns}k16"',
        "WGMMA_SUMS": f'"{", ".join(f"%{index}" for index in range(count))}"',
        "WGMMA_INPUTS": f'"{inputs}"',
        "WGMMA_OPERANDS(sums)": ", ".join(f'"+f"(sums[{index}])' for index in range(count)),
    }
