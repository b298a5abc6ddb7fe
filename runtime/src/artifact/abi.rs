//! The kernel ABI: how generated code is called.
//!
//! A kernel is re-entrant, allocates nothing, imports nothing and handles every tail:
//! [`KernelFn`]`(args, tile_begin, tile_end, scratch)` does the tiles `tile_begin .. tile_end` of one launch. Different workers
//! may do different tiles of the same launch at once; their writes do not overlap.
//!
//! All structures are `repr(C)` with 8-byte fields first; offsets are constants below so that the code generator states them once.

use std::ffi::c_void;

/// A generated function. `scratch` is the calling worker's own memory, 64-byte aligned, of at least the launch's
/// [`scratch_bytes`](super::manifest::Kernel::scratch_bytes).
pub type KernelFn = unsafe extern "C" fn(args: *const XfmArgs, tile_begin: u32, tile_end: u32, scratch: *mut c_void);

/// An arena over an axis whose number of elements is not known before has room for a multiple of so many rows.
pub const ROWS_ALIGN: u64 = 64;

/// What a launch works on.
#[repr(C)]
#[derive(Debug)]
pub struct XfmArgs {
    /// The launch's operands, in the order of [`Launch::operands`](super::manifest::Launch::operands).
    pub buffers: *const XfmBuffer,
    /// Sizes of this step: for ragged axis `a`, `sizes[2 * a]` is the number of its elements in the step and `sizes[2 * a + 1]` the number of selected rows.
    pub sizes: *const u64,
    /// One for each ragged axis.
    pub axes: *const XfmAxis,
    /// One for each cache group.
    pub caches: *const XfmCache,
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Index of the calling worker.
    pub worker: u32,
    /// Index of the device.
    pub device: u32,
    /// Sequences in the step.
    pub n_sequences: u32,
}

/// One operand of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XfmBuffer {
    /// First byte, 64-byte aligned for weights, arenas and cache slots. For a cache slot: of page 0.
    pub data: *mut u8,
    /// Reserved for scales that lie apart from their data; null.
    pub scale: *mut u8,
    /// Elements from one row (token) to the next; for weights, from one row of the packed form to the next where it has rows.
    pub row_stride: u64,
    /// Reserved for a per-sequence low-rank adapter; 0.
    pub reserved: u64,
}

/// A ragged axis in this step: the elements of several sequences, flattened.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XfmAxis {
    /// `offsets[s] .. offsets[s + 1]` are the elements of sequence `s`; `n_sequences + 1` entries.
    pub offsets: *const u32,
    /// Position of each element in its sequence.
    pub positions: *const u32,
    /// Sequence of each element.
    pub sequences: *const u32,
    /// Which elements the selected rows are, ascending.
    pub rows: *const u32,
}

/// A group of cache slots that share a block table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XfmCache {
    /// Page ids, `n_sequences` rows of `entries`. The token at position `p` of sequence `s` is in page
    /// `table[s * entries + (p / page_tokens) % entries]`, at element `p % page_tokens`. Entries that hold no page are 0, a page that is never given out.
    pub table: *const u32,
    /// Positions of each sequence after this step: `lengths[s]` is one more than the last visible position.
    pub lengths: *const u32,
    /// Entries per sequence.
    pub entries: u32,
    /// Tokens per page.
    pub page_tokens: u32,
}

/// The architecture of a target whose code is PTX: modules one after another, each ended by a zero byte, that a driver makes code of.
pub const PTX: &str = "ptx";

/// Most ragged axes of a model whose kernels take a [`XfmLaunch`].
pub const LAUNCH_AXES: usize = 8;

/// Most cache groups of a model whose kernels take a [`XfmLaunch`].
pub const LAUNCH_CACHES: usize = 16;

/// Most bytes that a kernel takes by value.
pub const LAUNCH_BYTES: usize = 4096;

/// What a launch works on, as kernels of a device with memory of its own take it: by value, so that nothing has to be fetched before the first
/// operand is. An [`XfmOperand`] for each operand of the launch follows. All addresses are the device's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XfmLaunch {
    /// Tiles of the launch.
    pub tiles: u32,
    /// Sequences in the step.
    pub n_sequences: u32,
    /// For each block of threads as many bytes as the kernel's [`scratch_bytes`](super::manifest::Kernel::scratch_bytes).
    pub scratch: u64,
    /// As [`XfmArgs::sizes`].
    pub sizes: [u64; 2 * LAUNCH_AXES],
    /// As [`XfmArgs::axes`].
    pub axes: [XfmAxis; LAUNCH_AXES],
    /// As [`XfmArgs::caches`].
    pub caches: [XfmCache; LAUNCH_CACHES],
}

/// One operand of a launch, behind an [`XfmLaunch`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XfmOperand {
    /// As [`XfmBuffer::data`].
    pub data: u64,
    /// As [`XfmBuffer::row_stride`].
    pub row_stride: u64,
}

/// Byte offsets of the fields that generated code reads.
pub mod offsets {
    use super::{XfmArgs, XfmAxis, XfmBuffer, XfmCache, XfmLaunch, XfmOperand};
    use std::mem::{offset_of, size_of};

    /// `XfmArgs::buffers`.
    pub const ARGS_BUFFERS: usize = offset_of!(XfmArgs, buffers);
    /// `XfmArgs::sizes`.
    pub const ARGS_SIZES: usize = offset_of!(XfmArgs, sizes);
    /// `XfmArgs::axes`.
    pub const ARGS_AXES: usize = offset_of!(XfmArgs, axes);
    /// `XfmArgs::caches`.
    pub const ARGS_CACHES: usize = offset_of!(XfmArgs, caches);
    /// Size of a buffer.
    pub const BUFFER_SIZE: usize = size_of::<XfmBuffer>();
    /// `XfmBuffer::data`.
    pub const BUFFER_DATA: usize = offset_of!(XfmBuffer, data);
    /// `XfmBuffer::row_stride`.
    pub const BUFFER_ROW_STRIDE: usize = offset_of!(XfmBuffer, row_stride);
    /// Size of an axis.
    pub const AXIS_SIZE: usize = size_of::<XfmAxis>();
    /// `XfmAxis::offsets`.
    pub const AXIS_OFFSETS: usize = offset_of!(XfmAxis, offsets);
    /// `XfmAxis::positions`.
    pub const AXIS_POSITIONS: usize = offset_of!(XfmAxis, positions);
    /// `XfmAxis::sequences`.
    pub const AXIS_SEQUENCES: usize = offset_of!(XfmAxis, sequences);
    /// `XfmAxis::rows`.
    pub const AXIS_ROWS: usize = offset_of!(XfmAxis, rows);
    /// `XfmArgs::n_sequences`.
    pub const ARGS_N_SEQUENCES: usize = offset_of!(XfmArgs, n_sequences);
    /// Size of a cache group.
    pub const CACHE_SIZE: usize = size_of::<XfmCache>();
    /// `XfmCache::table`.
    pub const CACHE_TABLE: usize = offset_of!(XfmCache, table);
    /// `XfmCache::lengths`.
    pub const CACHE_LENGTHS: usize = offset_of!(XfmCache, lengths);
    /// `XfmCache::entries`.
    pub const CACHE_ENTRIES: usize = offset_of!(XfmCache, entries);
    /// `XfmCache::page_tokens`.
    pub const CACHE_PAGE_TOKENS: usize = offset_of!(XfmCache, page_tokens);
    /// `XfmLaunch::tiles`.
    pub const LAUNCH_TILES: usize = offset_of!(XfmLaunch, tiles);
    /// `XfmLaunch::n_sequences`.
    pub const LAUNCH_N_SEQUENCES: usize = offset_of!(XfmLaunch, n_sequences);
    /// `XfmLaunch::scratch`.
    pub const LAUNCH_SCRATCH: usize = offset_of!(XfmLaunch, scratch);
    /// `XfmLaunch::sizes`.
    pub const LAUNCH_SIZES: usize = offset_of!(XfmLaunch, sizes);
    /// `XfmLaunch::axes`.
    pub const LAUNCH_AXES: usize = offset_of!(XfmLaunch, axes);
    /// `XfmLaunch::caches`.
    pub const LAUNCH_CACHES: usize = offset_of!(XfmLaunch, caches);
    /// Where operands begin.
    pub const LAUNCH_BUFFERS: usize = size_of::<XfmLaunch>();
    /// Size of an operand.
    pub const OPERAND_SIZE: usize = size_of::<XfmOperand>();
    /// `XfmOperand::data`.
    pub const OPERAND_DATA: usize = offset_of!(XfmOperand, data);
    /// `XfmOperand::row_stride`.
    pub const OPERAND_ROW_STRIDE: usize = offset_of!(XfmOperand, row_stride);
}
