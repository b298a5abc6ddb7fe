//! What the driver knows: memory, modules, events, graphs, and what was given to the stream and not done yet.

use std::alloc::Layout;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::settings::{capability, memory_bytes, variable};
use xfc_emulator::{Launch, Memory, Module, launch};

/// Result codes, as the driver numbers them.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_IMAGE: i32 = 200;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const INVALID_PTX: i32 = 218;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const NOT_READY: i32 = 600;
    pub(crate) const LAUNCH_FAILED: i32 = 719;
    pub(crate) const NOT_SUPPORTED: i32 = 801;
    pub(crate) const CAPTURE_UNSUPPORTED: i32 = 900;
    pub(crate) const CAPTURE_INVALIDATED: i32 = 901;
}

/// An error's code.
pub(crate) type Done<T = ()> = Result<T, i32>;

/// Memory begins at multiples of this, and of no more.
const ALIGN: u64 = 256;
/// What machine code begins with.
const HEADER: &[u8; 8] = b"\x7fFAKE\0\0\0";

/// A kernel launch with its arguments.
#[derive(Clone)]
pub(crate) struct Node {
    module: Arc<Module>,
    kernel: String,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: Vec<u8>,
    /// It may begin before what was given to the stream before it has ended, where that is a kernel.
    pub(crate) overlaps: bool,
}

/// What a stream does. Addresses of the host are as they were given.
pub(crate) enum Op {
    ToDevice { to: u64, from: usize, bytes: usize },
    ToHost { to: usize, from: u64, bytes: usize },
    Within { to: u64, from: u64, bytes: usize },
    Fill { to: u64, value: u8, bytes: usize },
    Launches(Arc<Vec<Node>>),
    Event(u64),
}

/// Address and bytes of memory of the host.
type Place = (usize, usize);

/// Shared memory that a launch may bring without asking, and the most that it may ask for: what all GPUs from 8.0 on have, and those of 9.0.
const SHARED: u32 = 48 << 10;
const MOST_SHARED: u32 = 99 << 10;
const MOST_SHARED_90: u32 = 227 << 10;

/// Everything.
#[derive(Default)]
pub(crate) struct State {
    memory: Memory,
    /// Of each allocation: its GPU and bytes.
    allocations: BTreeMap<u64, (i32, u64)>,
    /// Pinned memory.
    pinned: BTreeMap<usize, Layout>,
    modules: BTreeMap<u64, Arc<Module>>,
    functions: BTreeMap<u64, (Arc<Module>, String)>,
    /// Shared memory that launches of functions may bring, where more was asked for than there is without.
    shared: BTreeMap<u64, u32>,
    /// When events were passed.
    events: BTreeMap<u64, Option<Instant>>,
    graphs: BTreeMap<u64, Arc<Vec<Node>>>,
    /// Of linkers: what they made, and where they write what is wrong.
    linkers: BTreeMap<u64, (Vec<u8>, Option<Place>)>,
    recording: Option<Vec<Node>>,
    /// The recording has failed, and everything in it does until it ends.
    spoilt: bool,
    /// What was given to the stream last is a kernel.
    after_kernel: bool,
    pending: VecDeque<Op>,
    /// Once a kernel has failed, everything does.
    broken: bool,
    /// Kernels that were run.
    ran: u64,
    handles: u64,
}

thread_local! {
    /// The GPU of the thread's context.
    static CURRENT: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Adds a line to the log.
pub(crate) fn log(line: &str) {
    let Some(path) = std::env::var_os("XFC_DRIVER_LOG") else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    // A log that cannot be written is missed by whoever reads it.
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

pub(crate) fn enter(gpu: Option<i32>) {
    CURRENT.set(gpu);
}

/// The GPU of the calling thread's context.
pub(crate) fn current() -> Done<i32> {
    CURRENT.get().ok_or(code::INVALID_CONTEXT)
}

pub(crate) fn lock() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    /// Memory of zeros for the GPU of the context.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Done<u64> {
        let gpu = current()?;
        if bytes > self.free_bytes()? {
            return Err(code::OUT_OF_MEMORY);
        }
        let address = self.memory.alloc(bytes, ALIGN);
        self.allocations.insert(address, (gpu, bytes));
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> Done {
        self.all()?;
        self.allocations.remove(&address).ok_or(code::INVALID_VALUE)?;
        self.memory.free(address).map_err(|_| code::INVALID_VALUE)
    }

    pub(crate) fn free_bytes(&self) -> Done<u64> {
        let gpu = current()?;
        let used: u64 = self.allocations.values().filter(|(of, _)| *of == gpu).map(|(_, bytes)| bytes).sum();
        Ok(memory_bytes().saturating_sub(used))
    }

    /// Memory of the host.
    pub(crate) fn allocate_pinned(&mut self, bytes: usize) -> Done<usize> {
        current()?;
        let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(|_| code::INVALID_VALUE)?;
        // SAFETY: the layout has a size.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        if start.is_null() {
            return Err(code::OUT_OF_MEMORY);
        }
        self.pinned.insert(start.expose_provenance(), layout);
        Ok(start.addr())
    }

    pub(crate) fn free_pinned(&mut self, start: usize) -> Done {
        self.all()?;
        let layout = self.pinned.remove(&start).ok_or(code::INVALID_VALUE)?;
        // SAFETY: given by `allocate_pinned` with this layout, and freed once, as it is no longer listed.
        unsafe { std::alloc::dealloc(std::ptr::with_exposed_provenance_mut(start), layout) };
        Ok(())
    }

    /// Whether the bytes are pinned: only those may be copied from while the host goes on.
    fn is_pinned(&self, start: usize, bytes: usize) -> bool {
        let found = self.pinned.range(..=start).next_back();
        found.is_some_and(|(first, layout)| start - first + bytes <= layout.size())
    }

    /// Gives something to the stream.
    pub(crate) fn give(&mut self, op: Op) -> Done {
        current()?;
        if self.recording.is_some() {
            return Err(code::CAPTURE_UNSUPPORTED);
        }
        match op {
            Op::ToDevice { from: host, bytes, .. } | Op::ToHost { to: host, bytes, .. }
                if !self.is_pinned(host, bytes) =>
            {
                return Err(code::INVALID_VALUE);
            }
            Op::Event(event) => *self.events.get_mut(&event).ok_or(code::INVALID_VALUE)? = None,
            _ => {}
        }
        self.after_kernel = false;
        self.pending.push_back(op);
        Ok(())
    }

    /// Gives a kernel to the stream, or to what is recorded.
    pub(crate) fn give_kernel(&mut self, mut node: Node) -> Done {
        current()?;
        if self.spoilt {
            return Err(code::CAPTURE_INVALIDATED);
        }
        match &mut self.recording {
            Some(nodes) => {
                node.overlaps &= !nodes.is_empty();
                nodes.push(node);
            }
            None => {
                node.overlaps &= std::mem::replace(&mut self.after_kernel, true);
                self.pending.push_back(Op::Launches(Arc::new(vec![node])));
            }
        }
        Ok(())
    }

    /// Launches that may begin early are not taken, which spoils a recording.
    pub(crate) fn refuse_early(&mut self) -> i32 {
        self.spoilt = self.recording.is_some();
        code::NOT_SUPPORTED
    }

    /// Does what was given to the stream.
    pub(crate) fn all(&mut self) -> Done {
        if self.recording.is_some() {
            return Err(code::CAPTURE_UNSUPPORTED);
        }
        if self.broken {
            return Err(code::LAUNCH_FAILED);
        }
        while let Some(op) = self.pending.pop_front() {
            self.perform(op)?;
        }
        Ok(())
    }

    fn perform(&mut self, op: Op) -> Done {
        let refused = |_| code::INVALID_VALUE;
        match op {
            Op::ToDevice { to, from, bytes } => {
                let from = std::ptr::with_exposed_provenance::<u8>(from);
                // SAFETY: pinned memory, as was checked, which is freed only behind what was given before.
                let bytes = unsafe { std::slice::from_raw_parts(from, bytes) };
                self.memory.write(to, bytes).map_err(refused)
            }
            Op::ToHost { to, from, bytes } => {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
                // SAFETY: as above; the host does not use it until it has waited.
                let out = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
                self.memory.read(from, out).map_err(refused)
            }
            Op::Within { to, from, bytes } => {
                let mut copied = vec![0; bytes];
                self.memory.read(from, &mut copied).and_then(|()| self.memory.write(to, &copied)).map_err(refused)
            }
            Op::Fill { to, value, bytes } => self.memory.fill(to, bytes as u64, value).map_err(refused),
            Op::Launches(nodes) => nodes.iter().try_for_each(|node| {
                self.ran += 1;
                if self.ran == variable("XFC_DRIVER_FAULT", 0) {
                    self.broken = true;
                    return Err(code::LAUNCH_FAILED);
                }
                let mut how = Launch::new(node.grid, node.block, &node.params).with_shared(node.shared);
                how.overlaps = node.overlaps;
                let ran = launch(&node.module, &node.kernel, &mut self.memory, &how);
                ran.map(drop).map_err(|fault| {
                    self.broken = true;
                    log(&format!("fault: {fault}"));
                    code::LAUNCH_FAILED
                })
            }),
            Op::Event(event) => {
                self.events.insert(event, Some(Instant::now()));
                Ok(())
            }
        }
    }

    pub(crate) fn event(&mut self) -> Done<u64> {
        current()?;
        let event = self.handle();
        self.events.insert(event, None);
        Ok(event)
    }

    pub(crate) fn drop_event(&mut self, event: u64) -> Done {
        self.all()?;
        self.events.remove(&event).map(drop).ok_or(code::INVALID_VALUE)
    }

    /// Does what was given before an event.
    pub(crate) fn pass(&mut self, event: u64) -> Done {
        while self.pending.iter().any(|op| matches!(op, Op::Event(other) if *other == event)) {
            let Some(op) = self.pending.pop_front() else { break };
            self.perform(op)?;
        }
        if self.events.contains_key(&event) { Ok(()) } else { Err(code::INVALID_VALUE) }
    }

    /// Milliseconds between two events.
    pub(crate) fn between(&self, first: u64, second: u64) -> Done<f32> {
        let at = |event| self.events.get(&event).copied().ok_or(code::INVALID_VALUE)?.ok_or(code::NOT_READY);
        Ok(at(second)?.saturating_duration_since(at(first)?).as_secs_f32() * 1e3)
    }

    pub(crate) fn begin_recording(&mut self) -> Done {
        current()?;
        if self.recording.is_some() {
            return Err(code::INVALID_VALUE);
        }
        self.recording = Some(Vec::new());
        Ok(())
    }

    pub(crate) fn end_recording(&mut self) -> Done<u64> {
        let nodes = self.recording.take().ok_or(code::INVALID_VALUE)?;
        if std::mem::take(&mut self.spoilt) {
            return Err(code::CAPTURE_INVALIDATED);
        }
        Ok(self.graph(nodes.into()))
    }

    fn graph(&mut self, nodes: Arc<Vec<Node>>) -> u64 {
        let graph = self.handle();
        self.graphs.insert(graph, nodes);
        graph
    }

    /// A graph that can be launched, of a recorded one.
    pub(crate) fn instantiate(&mut self, graph: u64) -> Done<u64> {
        let nodes = self.graphs.get(&graph).cloned().ok_or(code::INVALID_VALUE)?;
        Ok(self.graph(nodes))
    }

    pub(crate) fn nodes(&self, graph: u64) -> Done<Arc<Vec<Node>>> {
        self.graphs.get(&graph).cloned().ok_or(code::INVALID_VALUE)
    }

    pub(crate) fn drop_graph(&mut self, graph: u64) -> Done {
        let nodes = self.nodes(graph)?;
        if self.pending.iter().any(|op| matches!(op, Op::Launches(others) if Arc::ptr_eq(others, &nodes))) {
            log("fault: a graph is destroyed that was not waited for");
        }
        self.graphs.remove(&graph).map(drop).ok_or(code::INVALID_VALUE)
    }

    /// A linker that writes what is wrong into `bytes` bytes at an address, and that may have been told a target.
    pub(crate) fn linker(&mut self, log: Option<Place>, has_target: bool) -> Done<u64> {
        current()?;
        if has_target && variable("XFC_DRIVER_LINKER", 1) == 2 {
            return Err(code::INVALID_VALUE);
        }
        let linker = self.handle();
        self.linkers.insert(linker, (Vec::new(), log));
        Ok(linker)
    }

    /// Makes machine code of PTX that a zero byte ends.
    pub(crate) fn link(&mut self, linker: u64, text: &[u8]) -> Done {
        let (made, log) = self.linkers.get_mut(&linker).ok_or(code::INVALID_VALUE)?;
        if variable("XFC_DRIVER_LINKER", 1) == 0 {
            return Err(code::INVALID_PTX);
        }
        let text = text.strip_suffix(b"\0").and_then(|text| std::str::from_utf8(text).ok()).ok_or(code::INVALID_PTX)?;
        if let Err(error) = Module::parse(text) {
            if let Some((start, bytes)) = *log {
                let said = format!("ptxas: {error}\0");
                let n = said.len().min(bytes);
                // SAFETY: who made the linker gave so many bytes for this until it is destroyed.
                let out = unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(start), n) };
                out.copy_from_slice(&said.as_bytes()[..n]);
            }
            return Err(code::INVALID_PTX);
        }
        *made = [HEADER, &(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        Ok(())
    }

    /// Where the machine code of a linker is, and its bytes.
    pub(crate) fn linked(&self, linker: u64) -> Done<Place> {
        let (made, _) = self.linkers.get(&linker).ok_or(code::INVALID_VALUE)?;
        Ok((made.as_ptr().expose_provenance(), made.len()))
    }

    pub(crate) fn drop_linker(&mut self, linker: u64) -> Done {
        self.linkers.remove(&linker).map(drop).ok_or(code::INVALID_VALUE)
    }

    /// A module of machine code, or of PTX that a zero byte ends, at an address.
    pub(crate) fn load(&mut self, image: usize) -> Done<u64> {
        current()?;
        let image = std::ptr::with_exposed_provenance::<u8>(image);
        // SAFETY: an image is never shorter than its header, which differs from all PTX in its first byte.
        let is_code = unsafe { *image } == HEADER[0];
        let text = if is_code {
            // SAFETY: as above.
            let start = unsafe { std::slice::from_raw_parts(image, 16) };
            let (header, length) = start.split_at(HEADER.len());
            if header != HEADER {
                return Err(code::INVALID_IMAGE);
            }
            let length = length.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
            // SAFETY: the header, which the linker wrote, says how many bytes follow.
            unsafe { std::slice::from_raw_parts(image.add(16), length) }.to_vec()
        } else {
            // SAFETY: PTX ends with a zero byte.
            unsafe { std::ffi::CStr::from_ptr(image.cast()) }.to_bytes().to_vec()
        };
        let text = String::from_utf8(text).map_err(|_| code::INVALID_IMAGE)?;
        let module = Module::parse(&text).map_err(|_| code::INVALID_PTX)?;
        let handle = self.handle();
        self.modules.insert(handle, Arc::new(module));
        Ok(handle)
    }

    pub(crate) fn unload(&mut self, module: u64) -> Done {
        self.all()?;
        let module = self.modules.remove(&module).ok_or(code::INVALID_VALUE)?;
        // What is recorded needs the code of its kernels.
        if self.graphs.values().flat_map(|nodes| nodes.iter()).any(|node| Arc::ptr_eq(&node.module, &module)) {
            log("fault: a module is unloaded that a graph has kernels of");
            return Err(code::INVALID_VALUE);
        }
        Ok(())
    }

    /// The function of a name.
    pub(crate) fn function(&mut self, module: u64, name: &str) -> Done<u64> {
        let module = self.modules.get(&module).cloned().ok_or(code::INVALID_VALUE)?;
        module.kernel(name).ok_or(code::NOT_FOUND)?;
        let handle = self.handle();
        self.functions.insert(handle, (module, name.to_owned()));
        Ok(handle)
    }

    /// Most threads of a block: a bound from above, as is documented, which knows nothing of how many the code asks for.
    pub(crate) fn most_threads(&self, function: u64) -> Done<i32> {
        let (module, name) = self.functions.get(&function).ok_or(code::INVALID_VALUE)?;
        let kernel = module.kernel(name).ok_or(code::NOT_FOUND)?;
        Ok(kernel.maxntid.map_or(1024, |threads| threads.iter().product::<u32>() as i32))
    }

    /// Lets launches of a function bring so much shared memory.
    pub(crate) fn allow_shared(&mut self, function: u64, bytes: i32) -> Done {
        let most = if capability() == 90 { MOST_SHARED_90 } else { MOST_SHARED };
        let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes <= most).ok_or(code::INVALID_VALUE)?;
        self.functions.get(&function).ok_or(code::INVALID_VALUE)?;
        self.shared.insert(function, bytes);
        Ok(())
    }

    /// A launch of a function, whose arguments are at the addresses of a list.
    pub(crate) fn node(
        &self,
        function: u64,
        (grid, block): ([u32; 3], [u32; 3]),
        shared: u32,
        list: *mut *mut u8,
    ) -> Done<Node> {
        let (module, name) = self.functions.get(&function).ok_or(code::INVALID_VALUE)?;
        let kernel = module.kernel(name).ok_or(code::NOT_FOUND)?;
        let other = |threads: [u32; 3]| threads != block;
        if kernel.reqntid.is_some_and(other) || shared > self.shared.get(&function).copied().unwrap_or(SHARED) {
            return Err(code::INVALID_VALUE);
        }
        let bytes = kernel.params.iter().map(|param| param.offset + param.bytes).max().unwrap_or(0) as usize;
        let mut params = vec![0; bytes];
        for (i, param) in kernel.params.iter().enumerate() {
            let to = &mut params[param.offset as usize..][..param.bytes as usize];
            // SAFETY: the list has the address of each argument, which has the bytes that the kernel says.
            to.copy_from_slice(unsafe { std::slice::from_raw_parts(*list.add(i), to.len()) });
        }
        Ok(Node { module: Arc::clone(module), kernel: name.clone(), grid, block, shared, params, overlaps: false })
    }
}
