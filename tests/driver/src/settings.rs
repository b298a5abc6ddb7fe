//! What the environment says of the driver and its GPUs: the table is in `lib.rs`.

/// What `XFC_DRIVER_...` says, or `default`.
pub(crate) fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) fn gpus() -> i32 {
    variable("XFC_DRIVER_GPUS", 2) as i32
}

pub(crate) fn memory_bytes() -> u64 {
    variable("XFC_DRIVER_MEMORY", 1_000_000_000)
}

/// Major and minor of each GPU's, as one number.
pub(crate) fn capability() -> i32 {
    variable("XFC_DRIVER_CAPABILITY", 80) as i32
}

/// As the driver numbers versions of CUDA.
pub(crate) fn version() -> i32 {
    variable("XFC_DRIVER_VERSION", 12040) as i32
}

/// Whether launches may begin early.
pub(crate) fn takes_early() -> bool {
    variable("XFC_DRIVER_OVERLAP", 1) != 0
}
