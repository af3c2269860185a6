"""The text of Hopper's instruction for products of warpgroups, which names every register."""


def macros(columns: int) -> dict[str, str]:
    """Macros of kernels/wgmma.cuh for products ``[64, columns]`` with A in registers.

    Args:
        columns: multiple of 8, up to 256.
    """
    count = columns // 2
    inputs = ", ".join(f"%{count + index}" for index in range(4))
    return {
        "WGMMA_COLUMNS": str(columns),
        "WGMMA_SHAPE": f'"m64n{columns}k16"',
        "WGMMA_SUMS": f'"{", ".join(f"%{index}" for index in range(count))}"',
        "WGMMA_INPUTS": f'"{{{inputs}}}, %{count + 4}"',
        "WGMMA_OPERANDS(sums)": ", ".join(f'"+f"(sums[{index}])' for index in range(count)),
    }
