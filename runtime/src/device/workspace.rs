//! A session's memory on a device: arenas and cache pages, laid out as the manifest says, and the launches of a step over them.

use super::{AxisStep, Device, Launch, Memory, Rows, Step, Stream};
use crate::artifact::abi::{ROWS_ALIGN, XfmBuffer};
use crate::artifact::manifest::{self, BufferRef, CacheGroup, DType, Keep, Manifest, Pack, Weight};
use crate::artifact::validate::packed_bytes;
use crate::cache::{BlockTable, PageCopy};
use crate::error::{Result, RuntimeError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The weights of a model in a device's memory. Only ever read.
#[derive(Debug)]
pub struct LoadedWeights {
    /// All of them.
    pub memory: Memory,
    /// First byte of each.
    pub offsets: Vec<u64>,
}

/// Operand addresses of all launches.
#[derive(Debug)]
struct BufferTable(Vec<XfmBuffer>);

// SAFETY: plain addresses into memory that the same workspace owns or shares; only `Device::run` follows them.
unsafe impl Send for BufferTable {}
// SAFETY: as above; a shared reference gives no way to follow them.
unsafe impl Sync for BufferTable {}

/// Memory for steps of up to some number of rows.
#[derive(Debug)]
pub struct Workspace {
    /// No other has it.
    number: u64,
    device: Arc<dyn Device>,
    manifest: Arc<Manifest>,
    /// Kept alive for the addresses in `buffers`.
    weights: Arc<LoadedWeights>,
    /// Rows that there is room for, of each axis.
    capacity_rows: Vec<u64>,
    arenas: Vec<Memory>,
    /// Memory of cache slots; several slots may share one.
    pages: Vec<Memory>,
    /// For each group, for each slot: index into `pages`.
    slots: Vec<Vec<usize>>,
    buffers: BufferTable,
    /// Where each launch's operands begin in `buffers`.
    first_buffers: Vec<usize>,
    /// For each launch, its packed matrices, as if all of them were one tile's.
    matrices: Vec<Option<Stream>>,
    /// Of the last step: elements and selected rows of each axis, and what was launched. Kept so that a step takes no memory from the system.
    sizes: Vec<u64>,
    launches: Vec<Launch>,
}

impl Workspace {
    /// Memory for steps of so many `rows` of each axis, and for `capacity_pages` pages a cache group.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        manifest: Arc<Manifest>,
        weights: Arc<LoadedWeights>,
        rows: &[u64],
        capacity_pages: &[u64],
    ) -> Result<Self> {
        let too_large = || {
            RuntimeError::request(
                "the session's memory would exceed 64-bit sizes",
                "ask for smaller steps or a smaller context",
            )
        };
        // Where the number of elements is known, rows lie at aligned offsets whatever their number.
        let capacity = |(extent, &rows): (&Option<u64>, &u64)| match extent {
            Some(_) => Some(rows),
            None => rows.checked_next_multiple_of(ROWS_ALIGN),
        };
        let capacity_rows: Vec<u64> =
            manifest.extents.iter().zip(rows).map(capacity).collect::<Option<_>>().ok_or_else(too_large)?;
        let mut arenas = Vec::new();
        for arena in &manifest.arenas {
            let rows = capacity_rows[arena.axis];
            arenas.push(device.allocate(arena.bytes_per_row.checked_mul(rows).ok_or_else(too_large)?)?);
        }
        let mut pages = Vec::new();
        let mut slots = Vec::new();
        for (group, &n_pages) in manifest.caches.iter().zip(capacity_pages) {
            let (sizes, of_slot) = slot_memory(group);
            slots.push(of_slot.into_iter().map(|index| index + pages.len()).collect::<Vec<usize>>());
            for page_bytes in sizes {
                pages.push(device.allocate(page_bytes.checked_mul(n_pages).ok_or_else(too_large)?)?);
            }
        }
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let mut workspace = Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            device,
            manifest,
            weights,
            capacity_rows,
            arenas,
            pages,
            slots,
            buffers: BufferTable(Vec::new()),
            first_buffers: Vec::new(),
            matrices: Vec::new(),
            sizes: Vec::new(),
            launches: Vec::new(),
        };
        workspace.resolve_buffers()?;
        Ok(workspace)
    }

    /// Fills the table of operand addresses.
    fn resolve_buffers(&mut self) -> Result<()> {
        let manifest = Arc::clone(&self.manifest);
        let mut table = Vec::new();
        for launch in &manifest.launches {
            self.first_buffers.push(table.len());
            self.matrices.push(matrices(launch, &manifest.weights, table.len()));
            for &operand in &launch.operands {
                let (data, row_stride) = self.resolve(operand)?;
                table.push(XfmBuffer { data, scale: std::ptr::null_mut(), row_stride, reserved: 0 });
            }
        }
        self.buffers = BufferTable(table);
        Ok(())
    }

    /// Address and row stride of an operand.
    fn resolve(&mut self, operand: BufferRef) -> Result<(*mut u8, u64)> {
        let none = || RuntimeError::Device {
            device: self.device.name(),
            problem: format!("operand {operand:?} does not exist"),
        };
        match operand {
            BufferRef::Arena { arena, offset, column, row_stride, .. } => {
                let at = self.arena_byte(arena, offset, column)?;
                let memory = self.arenas.get_mut(arena).ok_or_else(none)?;
                Ok((memory.address().wrapping_add(at as usize), row_stride))
            }
            BufferRef::Weight(weight) => {
                let offset = *self.weights.offsets.get(weight).ok_or_else(none)?;
                let shape = self.manifest.weights.get(weight).ok_or_else(none)?;
                // Kernels only read weights.
                Ok((
                    self.weights.memory.read_address().cast_mut().wrapping_add(offset as usize),
                    weight_row_stride(shape),
                ))
            }
            BufferRef::Cache { group, slot } => {
                let index = *self.slots.get(group).and_then(|slots| slots.get(slot)).ok_or_else(none)?;
                Ok((self.pages[index].address(), 0))
            }
        }
    }

    /// Byte of an arena at which a view begins.
    fn arena_byte(&self, arena: usize, offset: u64, column: u64) -> Result<u64> {
        let rows = self.manifest.arenas.get(arena).map(|arena| self.capacity_rows[arena.axis]);
        let at = rows.and_then(|rows| offset.checked_mul(rows)).and_then(|at| at.checked_add(column));
        at.ok_or_else(|| RuntimeError::Device {
            device: self.device.name(),
            problem: "a view exceeds its arena".to_owned(),
        })
    }

    /// Copies pages of all slots of a group, before a step.
    pub(crate) fn copy_pages(&mut self, copies: &[PageCopy]) -> Result<()> {
        for copy in copies {
            let (sizes, of_slot) = slot_memory(&self.manifest.caches[copy.group]);
            for (slot, &index) in self.slots[copy.group].iter().enumerate() {
                let bytes = sizes[of_slot[slot]];
                self.device.copy(
                    &mut self.pages[index],
                    u64::from(copy.from) * bytes,
                    u64::from(copy.to) * bytes,
                    bytes,
                )?;
            }
        }
        Ok(())
    }

    /// Writes the rows of input `index`, `data` being row after row without gaps.
    pub(crate) fn write_input(&mut self, index: usize, data: &[u8]) -> Result<()> {
        let input = &self.manifest.inputs[index];
        let (arena, at, row_bytes, stride_bytes) = self.rows_of(input.buffer, input.dtype, &input.dims)?;
        let memory = &mut self.arenas[arena];
        if row_bytes == stride_bytes {
            return self.device.upload(memory, at, data);
        }
        for (row, data) in data.chunks_exact(row_bytes as usize).enumerate() {
            self.device.upload(memory, at + row as u64 * stride_bytes, data)?;
        }
        Ok(())
    }

    /// Threads of the host that may work on outputs.
    pub(crate) fn host_threads(&self) -> usize {
        self.device.host_threads()
    }

    /// Shows `each` the bytes of the first `n` rows of output `index`, row after row without gaps, in pieces of whole elements.
    pub(crate) fn read_output(&self, index: usize, n: u64, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let output = &self.manifest.outputs[index];
        let (arena, at, bytes, stride) = self.rows_of(output.buffer, output.dtype, &output.dims)?;
        self.device.read_rows(&self.arenas[arena], Rows { at, stride, bytes, n }, each)
    }

    /// Arena, first byte, bytes of a row, bytes from row to row.
    fn rows_of(&self, buffer: BufferRef, dtype: DType, dims: &[u64]) -> Result<(usize, u64, u64, u64)> {
        let BufferRef::Arena { arena, offset, column, row_stride, .. } = buffer else {
            return Err(RuntimeError::Device {
                device: self.device.name(),
                problem: "an input or output lies outside of the arenas".to_owned(),
            });
        };
        let size = dtype.size_bytes() as u64;
        Ok((arena, self.arena_byte(arena, offset, column)?, dims.iter().product::<u64>() * size, row_stride * size))
    }

    /// Runs all launches over the rows of a step. `axes` and `caches` are those of the manifest, in its order.
    ///
    /// # Errors
    /// The step is larger than the workspace, or the device failed.
    pub(crate) fn run(&mut self, axes: &[AxisStep], caches: &[BlockTable], n_sequences: u32) -> Result<()> {
        self.sizes.clear();
        self.sizes.extend(axes.iter().flat_map(|axis| [axis.positions.len() as u64, axis.rows.len() as u64]));
        let capacity = self.capacity_rows.iter().flat_map(|rows| [rows, rows]);
        if let Some((rows, room)) = self.sizes.iter().zip(capacity).find(|(rows, room)| rows > room) {
            let problem = format!("a step has {rows} rows, the session has room for {room}");
            return Err(RuntimeError::request(problem, "give fewer tokens at a time"));
        }
        self.choose_launches(axes)?;
        let Self { launches, buffers, sizes, .. } = &*self;
        let step = Step { workspace: self.number, launches, buffers: &buffers.0, sizes, axes, caches, n_sequences };
        // SAFETY: the addresses were resolved against arenas and pages that this workspace owns (and borrows mutably here) and against
        // weights that it keeps alive and nobody writes; each view lies inside its memory, as the manifest's validation and the check of
        // rows above promise; axes and block tables come from one session, whose cache numbers only pages that `new` made room for.
        unsafe { self.device.run(&step) }
    }

    /// The launches that have something to do, with the kernels for this many rows.
    fn choose_launches(&mut self, axes: &[AxisStep]) -> Result<()> {
        let phases = &self.manifest.phases;
        self.launches.clear();
        for (index, launch) in self.manifest.launches.iter().enumerate() {
            let rows = self.sizes[2 * launch.axis + usize::from(launch.rows)].saturating_mul(launch.times);
            if rows == 0 || launch.when.is_some_and(|when| !axes[launch.axis].has(when)) {
                continue;
            }
            let phase = phases
                .iter()
                .position(|phase| phase.max_rows.is_none_or(|most| rows <= most))
                .unwrap_or(phases.len() - 1);
            let variant = launch.variants[phase];
            let tiles = rows
                .div_ceil(variant.rows_per_tile)
                .checked_mul(variant.tiles_per_block)
                .and_then(|tiles| u32::try_from(tiles).ok());
            let tiles = tiles.ok_or_else(|| {
                RuntimeError::request(
                    format!("launch `{}` has more than 2^32 tiles for {rows} rows", launch.name),
                    "give fewer tokens at a time",
                )
            })?;
            let first = self.first_buffers[index];
            // The rows of one block share the panels, which are its tiles.
            let one_block = u64::from(tiles) == variant.tiles_per_block;
            let stream = self.matrices[index].filter(|all| one_block && all.tile_bytes.is_multiple_of(tiles.into()));
            self.launches.push(Launch {
                index,
                kernel: variant.kernel,
                tiles,
                buffers: first..first + launch.operands.len(),
                stream: stream.map(|all| Stream { tile_bytes: all.tile_bytes / u64::from(tiles), ..all }),
            });
        }
        Ok(())
    }
}

/// The packed matrices that a launch reads whole, equal in size, with the bytes of one; `first` is the place of its first operand. Of a table
/// that is packed as a matrix only rows are read.
fn matrices(launch: &manifest::Launch, weights: &[Weight], first: usize) -> Option<Stream> {
    launch.cost.filter(|cost| cost.chosen.is_none() && cost.weight_bytes > 0 && cost.row_weight_bytes == 0)?;
    let bytes = |operand: &BufferRef| match operand {
        BufferRef::Weight(weight) => {
            weights.get(*weight).filter(|w| w.pack != Pack::Plain).and_then(|w| packed_bytes(w).ok())
        }
        _ => None,
    };
    let of_operands: Vec<Option<u64>> = launch.operands.iter().map(bytes).collect();
    let begin = of_operands.iter().position(Option::is_some)?;
    let all = of_operands[begin..].iter().take_while(|bytes| bytes.is_some()).count();
    let tile_bytes = of_operands[begin]?;
    let equal = of_operands[begin..begin + all].iter().all(|bytes| *bytes == Some(tile_bytes));
    equal.then_some(Stream { first: first + begin, matrices: all, tile_bytes })
}

/// The page sizes of the separate memories of a group, and which of them each slot uses.
pub(crate) fn slot_memory(group: &CacheGroup) -> (Vec<u64>, Vec<usize>) {
    let mut sizes: Vec<u64> = Vec::new();
    let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
    let mut of_slot = Vec::with_capacity(group.slots.len());
    for slot in &group.slots {
        let alias = slot.alias.filter(|_| group.keep == Keep::Step);
        let index = match alias.and_then(|alias| shared.get(&alias)) {
            Some(&index) => index,
            None => {
                sizes.push(0);
                alias.map(|alias| shared.insert(alias, sizes.len() - 1));
                sizes.len() - 1
            }
        };
        sizes[index] = sizes[index].max(slot.page_bytes);
        of_slot.push(index);
    }
    (sizes, of_slot)
}

/// Elements from one row of a packed weight to the next: of the matrix, or of its panels; bytes, of panels of integers.
fn weight_row_stride(weight: &Weight) -> u64 {
    match (weight.pack, weight.shape.as_slice()) {
        (Pack::Panels { columns, depth }, [.., _, inputs]) => columns * inputs.next_multiple_of(depth),
        (Pack::Blocks(blocks), [.., inputs]) => blocks.panel_bytes(*inputs),
        (_, shape) => shape.iter().skip(1).product(),
    }
}
