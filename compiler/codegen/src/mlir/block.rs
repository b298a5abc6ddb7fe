//! Kernels of a block of threads: what the [`Writer`] writes where the lanes of a vector are held by threads, each its own.
//!
//! All threads of a block run the same text. What is a scalar there has the same value in all of them, so that they take the same ways; of a
//! vector each holds its lanes (element `l` of as many as there are threads is thread `l`'s). Vectors meet in sums and maxima, which go through the
//! registers of a warp and, of several warps, through shared memory; and in memory, where [`Writer::sync`] stands between those who wrote and those who
//! read.
//!
//! A block does one tile after another: its own number, then every so many as there are blocks.

use std::fmt::Write as _;

use xfc_runtime::artifact::abi::offsets as abi;

use super::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};

/// Threads whose registers can be read by one another.
const WARP: u32 = 32;

/// Shared memory that a kernel takes for its scratch without asking; what is larger lies in the device's memory.
const SHARED_BYTES: u64 = 40 << 10;

impl Writer {
    /// Whether vectors are held by the threads of a block.
    pub(super) fn is_block(&self) -> bool {
        self.machine().threads > 1
    }

    /// The kernel's parameters: a tile of its own for each turn of a loop that [`leave_block`](Self::leave_block) ends. `ahead` is as in
    /// [`kernel_ahead`](Self::kernel_ahead).
    pub(super) fn enter_block(&mut self, ahead: impl FnOnce(&mut Self, Val, Val)) -> KernelParams {
        let args = self.fresh(Ty::scalar(Elem::Ptr));
        // What memory it is, is known at the end.
        let scratch = self.fresh(Ty::scalar(Elem::Ptr));
        let [block, blocks] = ["ctaid", "nctaid"].map(|name| {
            let number = self.op(Ty::scalar(Elem::I32), &format!("nvvm.read.ptx.sreg.{name}.x : i32"));
            self.widen_unsigned(number, Elem::I64)
        });
        if self.machine().overlaps {
            self.overlap(|w| ahead(w, args, block));
        }
        let at = self.offset_const(args, abi::LAUNCH_TILES as u64);
        let tiles = self.load(Ty::scalar(Elem::I32), at);
        let tiles = self.widen_unsigned(tiles, Elem::I64);
        let tile_begin = self.fresh(Ty::scalar(Elem::I64));
        self.line(&format!("scf.for {tile_begin} = {block} to {tiles} step {blocks} : i64 {{"));
        self.depth += 1;
        let one = self.i64(1);
        let tile_end = self.add(tile_begin, one);
        KernelParams { args, tile_begin, tile_end, scratch }
    }

    /// Ends the loop over tiles; gives the function's head and the bytes of scratch that a block needs in the device's memory.
    pub(super) fn leave_block(&mut self, scratch_bytes: u64) -> (String, u64) {
        // The next tile writes over what this one read.
        self.sync();
        self.depth -= 1;
        self.line("}");
        let words = abi::LAUNCH_BUFFERS / 8 + self.n_buffers * abi::OPERAND_SIZE / 8;
        let symbol = self.symbol();
        let side_by_side = match self.machine().side_by_side {
            0 => String::new(),
            n => format!(", nvvm.minctasm = {n} : i32"),
        };
        let mut head = format!(
            "llvm.func @{symbol}(%v0: !llvm.ptr {{llvm.byval = !llvm.array<{words} x i64>, llvm.align = 8 : i64}}) attributes {{nvvm.kernel, nvvm.reqntid = array<i32: {}, 1, 1>{side_by_side}}} {{",
            self.machine().threads * self.machine().groups
        );
        let is_shared = scratch_bytes <= SHARED_BYTES;
        if is_shared {
            let bytes = scratch_bytes.max(16);
            let _ = writeln!(
                self.globals,
                "  llvm.mlir.global internal @scratch() {{addr_space = 3 : i32, alignment = 64 : i64}} : !llvm.array<{bytes} x i8>"
            );
            head += "\n    %shared = llvm.mlir.addressof @scratch : !llvm.ptr<3>";
            head += "\n    %v1 = llvm.addrspacecast %shared : !llvm.ptr<3> to !llvm.ptr";
        } else {
            let _ = write!(
                head,
                "
    %at = llvm.getelementptr %v0[{}] : (!llvm.ptr) -> !llvm.ptr, i8
    %base = llvm.load %at {{alignment = 8 : i64}} : !llvm.ptr -> !llvm.ptr
    %number = nvvm.read.ptx.sreg.ctaid.x : i32
    %block = arith.extui %number : i32 to i64
    %size = arith.constant {scratch_bytes} : i64
    %shift = arith.muli %block, %size : i64
    %v1 = llvm.getelementptr %base[%shift] : (!llvm.ptr, i64) -> !llvm.ptr, i8",
                abi::LAUNCH_SCRATCH
            );
        }
        (head, if is_shared { 0 } else { scratch_bytes })
    }

    /// Which lane a thread holds, as a vector of so many 32-bit numbers as there are threads.
    fn lane(&mut self) -> Val {
        let ty = Ty::of(Elem::I32, self.machine().threads);
        let thread = self.thread().with(ty);
        if self.machine().groups == 1 {
            return thread;
        }
        let last = self.int(i64::from(self.machine().threads) - 1, ty);
        self.and(thread, last)
    }

    /// The number of the thread in its block.
    pub(super) fn thread(&mut self) -> Val {
        self.op(Ty::scalar(Elem::I32), "nvvm.read.ptx.sreg.tid.x : i32")
    }

    /// The number of the group that a thread is of; 0 where there is one. The same in all threads of a group: no [`sync`](Self::sync) may stand where
    /// groups go different ways.
    pub fn group(&mut self) -> Val {
        if self.machine().groups == 1 {
            return self.i64(0);
        }
        let thread = self.thread();
        let group = self.shr(thread, self.machine().threads.ilog2());
        self.widen_unsigned(group, Elem::I64)
    }

    /// `condition`, in the first group alone.
    pub fn in_first_group(&mut self, condition: Val) -> Val {
        if self.machine().groups == 1 {
            return condition;
        }
        let group = self.group();
        let zero = self.i64(0);
        let is_first = self.cmp(Cmp::Eq, group, zero);
        self.and(condition, is_first)
    }

    /// Vectors of f32 that every group has some terms of, with those of all: in the first group.
    pub fn add_groups(&mut self, sums: Vec<Val>) -> Vec<Val> {
        let groups = u64::from(self.machine().groups);
        if groups == 1 {
            return sums;
        }
        let vector_bytes = u64::from(self.machine().threads) * 4;
        let of_group = sums.len() as u64 * vector_bytes;
        let shared = self.shared("sums", of_group * groups);
        let group = self.group();
        // What was read of the last sums may be written over.
        self.sync();
        let mine = self.element(shared, group, of_group);
        for (i, sum) in sums.iter().enumerate() {
            let at = self.offset_const(mine, i as u64 * vector_bytes);
            self.store(*sum, at);
        }
        self.sync();
        let mut totals = sums;
        for (i, total) in totals.iter_mut().enumerate() {
            for group in 1..groups {
                let at = self.offset_const(shared, group * of_group + i as u64 * vector_bytes);
                let other = self.load(total.ty, at);
                *total = self.add(*total, other);
            }
        }
        totals
    }

    /// Shared memory of a block.
    pub(super) fn shared(&mut self, name: &str, bytes: u64) -> Val {
        let name = format!("{name}{}", self.n_globals);
        self.n_globals += 1;
        let _ = writeln!(
            self.globals,
            "  llvm.mlir.global internal @{name}() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<{bytes} x i8>"
        );
        self.shared_address(&name)
    }

    /// Where shared memory of a name is. Copies want it as `{address}_3`.
    pub(super) fn shared_address(&mut self, name: &str) -> Val {
        let address = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!("{address}_3 = llvm.mlir.addressof @{name} : !llvm.ptr<3>"));
        self.line(&format!("{address} = llvm.addrspacecast {address}_3 : !llvm.ptr<3> to !llvm.ptr"));
        address
    }

    /// Word `index` of the four that each thread holds of a vector.
    pub fn word_of(&mut self, four: Val, index: usize) -> Val {
        let ty = Ty::of(four.ty.elem, four.ty.lanes / 4);
        let (word, all) = (self.text(ty), self.text(four.ty));
        self.op(ty, &format!("vector.extract {four}[{index}] : {word} from {all}"))
    }

    /// What the threads of a block wrote so far, all of them see from here on; and what they read so far may be written over. Nothing where a
    /// kernel has one thread.
    pub fn sync(&mut self) {
        match self.machine().threads * self.machine().groups {
            1 => {}
            WARP => self.sync_group(),
            _ => self.line("nvvm.barrier"),
        }
    }

    /// Where a thread's lanes of a vector of type `ty` at `at` are.
    pub(super) fn own_place(&mut self, at: Val, ty: Ty) -> Val {
        let own = u64::from(ty.lanes / self.machine().threads);
        if !self.is_block() || own == 0 {
            return at;
        }
        let lane = self.lane();
        let lane = self.widen_unsigned(lane, Elem::I64).with(Ty::scalar(Elem::I64));
        self.element(at, lane, own * ty.elem.bytes())
    }

    /// A constant of different lanes.
    pub(super) fn lanes_of_block(&mut self, values: &[i64], ty: Ty) -> Val {
        let lane = self.lane();
        if ty.lanes == lane.ty.lanes {
            let first = values.first().copied().unwrap_or(0);
            let step = values.get(1).copied().unwrap_or(first) - first;
            if ty.elem == Elem::I1 {
                let set = values.iter().take_while(|v| **v != 0).count();
                if values[set..].iter().all(|v| *v == 0) {
                    let n = self.int(set as i64, lane.ty);
                    return self.cmp(Cmp::Lt, lane, n);
                }
            } else if values.iter().zip(0..).all(|(v, i)| *v == first + i * step) {
                let lane = self.resize(lane, ty.elem);
                let step = self.int(step, ty);
                let behind = self.mul(lane, step);
                let first = self.int(first, ty);
                return self.add(behind, first);
            }
        }
        let values: Vec<f64> = values.iter().map(|v| *v as f64).collect();
        let is_bool = ty.elem == Elem::I1;
        let elem = if is_bool { Elem::I8 } else { ty.elem };
        let table = self.table_int(&values, elem);
        let value = self.load(ty.with(elem), table);
        if !is_bool {
            return value;
        }
        let zero = self.int(0, value.ty);
        self.cmp(Cmp::Ne, value, zero)
    }

    /// Loads the lanes whose mask is set; the others are zero.
    pub(super) fn load_if(&mut self, ty: Ty, from: Val, mask: Val) -> Val {
        let zero = if ty.elem.is_float() { self.f32(0.0, ty.lanes) } else { self.int(0, ty) };
        let value = self.fresh(ty);
        let text = self.text(ty);
        self.line(&format!("{value} = scf.if {mask} -> ({text}) {{"));
        self.depth += 1;
        let loaded = self.load(ty, from);
        self.line(&format!("scf.yield {loaded} : {text}"));
        self.depth -= 1;
        self.line("} else {");
        self.line(&format!("  scf.yield {zero} : {text}"));
        self.line("}");
        value
    }

    /// Stores the lanes whose mask is set.
    pub(super) fn store_if(&mut self, value: Val, to: Val, mask: Val) {
        self.line(&format!("scf.if {mask} {{"));
        self.depth += 1;
        self.store(value, to);
        self.depth -= 1;
        self.line("}");
    }

    /// Stores what is the same in all threads.
    pub(super) fn store_once(&mut self, value: Val, to: Val) {
        let thread = self.thread();
        let zero = self.int(0, thread.ty);
        let first = self.cmp(Cmp::Eq, thread, zero);
        self.line(&format!("scf.if {first} {{"));
        self.depth += 1;
        self.store_own(value, to);
        self.depth -= 1;
        self.line("}");
    }

    /// All lanes brought to one value, in every thread: `kind` is as in [`reduce`](Self::reduce).
    pub(super) fn reduce_block(&mut self, a: Val, kind: &str) -> Val {
        let threads = self.machine().threads;
        let scalar = Ty::scalar(a.ty.elem);
        if a.ty.elem == Elem::I1 {
            let wide = self.resize(a, Elem::I32);
            let any = self.reduce_block(wide, "maxsi");
            let zero = self.int(0, any.ty);
            return self.cmp(Cmp::Ne, any, zero);
        }
        let mut x = a.with(scalar);
        for distance in [16, 8, 4, 2, 1] {
            let other = self.shuffle(x, distance);
            x = self.combine(kind, x, other);
        }
        if threads == WARP {
            return x;
        }
        let warps = threads / WARP;
        let size = scalar.elem.bytes();
        let id = self.shared("meet", u64::from(warps) * size);
        let lane = self.lane().with(Ty::scalar(Elem::I32));
        let warp = self.shr(lane, WARP.ilog2());
        let warp = self.widen_unsigned(warp, Elem::I64);
        let at = self.element(id, warp, size);
        // What was read of the last sum may be written over.
        self.sync();
        let first = self.int(i64::from(WARP) - 1, lane.ty);
        let of_warp = self.and(lane, first);
        let zero = self.int(0, lane.ty);
        let is_first = self.cmp(Cmp::Eq, of_warp, zero);
        self.line(&format!("scf.if {is_first} {{"));
        self.depth += 1;
        self.store_own(x, at);
        self.depth -= 1;
        self.line("}");
        self.sync();
        let mut x = self.load(scalar, id);
        for warp in 1..warps {
            let at = self.offset_const(id, u64::from(warp) * size);
            let other = self.load(scalar, at);
            x = self.combine(kind, x, other);
        }
        x
    }

    fn combine(&mut self, kind: &str, a: Val, b: Val) -> Val {
        match kind {
            "add" => self.add(a, b),
            "or" => self.or(a, b),
            "maximumf" | "maxsi" => self.max(a, b),
            _ => self.min(a, b),
        }
    }

    /// What the thread whose number differs from one's own by the bit `distance` holds.
    pub(super) fn shuffle(&mut self, x: Val, distance: u32) -> Val {
        if x.ty.elem.bytes() == 8 {
            let i64s = Ty::scalar(Elem::I64);
            let bits = self.bitcast(x, i64s);
            let halves = [0, 32].map(|down| {
                let half = if down == 0 { bits } else { self.shr(bits, down) };
                let half = self.resize(half, Elem::I32);
                let half = self.shuffle(half, distance);
                self.widen_unsigned(half, Elem::I64)
            });
            let high = self.shl(halves[1], 32);
            let both = self.or(halves[0], high);
            return self.bitcast(both, x.ty);
        }
        let [all, by, clamp] = [-1, i64::from(distance), 31].map(|n| self.int(n, Ty::scalar(Elem::I32)));
        let text = self.text(x.ty);
        self.op(x.ty, &format!("nvvm.shfl.sync bfly {all}, {x}, {by}, {clamp} : {text} -> {text}"))
    }
}
