//! What the [`Writer`] writes for tensor cores: copies to shared memory that go on by themselves, and products of tiles that a warp holds.
//!
//! What a thread holds of a tile is a scalar here that differs from thread to thread.

use super::machine::{ByteTileDot, TileDot};
use super::writer::{Cmp, Elem, Ty, Val, Writer};

impl Writer {
    /// The address of a pointer, as a number.
    pub fn address(&mut self, pointer: Val) -> Val {
        self.op(Ty::scalar(Elem::I64), &format!("llvm.ptrtoint {pointer} : !llvm.ptr to i64"))
    }

    /// Begins to copy 16 bytes from memory at `from` to those `to` bytes behind `shared`, of which the first `bytes` (32 bits) are read, and the others are 0.
    /// Where none is read, `from` may be anywhere; `valid` is an address that may be given instead.
    pub fn copy_piece(&mut self, shared: Val, to: Val, from: Val, bytes: Val, valid: Val) {
        let zero = self.int(0, bytes.ty);
        let any = self.cmp(Cmp::Gt, bytes, zero);
        let from = self.select(any, from, valid);
        self.copy_some(shared, to, from, bytes);
    }

    /// The same with `from` as it is.
    pub fn copy_some(&mut self, shared: Val, to: Val, from: Val, bytes: Val) {
        self.copy("cg.shared.global.16.s", shared, to, from, &[bytes]);
    }

    /// Begins to copy 4 bytes.
    pub fn copy_word(&mut self, shared: Val, to: Val, from: Val) {
        self.copy("ca.shared.global.4", shared, to, from, &[]);
    }

    /// Begins to copy 4 bytes, or none if `bytes` (32 bits) is 0: they are then 0.
    pub fn copy_word_if(&mut self, shared: Val, to: Val, from: Val, bytes: Val) {
        self.copy("ca.shared.global.4.s", shared, to, from, &[bytes]);
    }

    fn copy(&mut self, name: &str, shared: Val, to: Val, from: Val, bytes: &[Val]) {
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!("{id}_3 = llvm.getelementptr {shared}_3[{to}] : (!llvm.ptr<3>, i64) -> !llvm.ptr<3>, i8"));
        self.line(&format!("{id}_1 = llvm.addrspacecast {from} : !llvm.ptr to !llvm.ptr<1>"));
        let bytes: Vec<String> = bytes.iter().map(|bytes| format!(", {bytes}")).collect();
        let types = if bytes.is_empty() { "" } else { ", i32" };
        self.line(&format!(
            "llvm.call_intrinsic \"llvm.nvvm.cp.async.{name}\"({id}_3, {id}_1{}) : (!llvm.ptr<3>, !llvm.ptr<1>{types}) -> ()",
            bytes.concat()
        ));
    }

    /// The copies that a thread began since the last time are one group.
    pub fn end_copies(&mut self) {
        self.line("nvvm.cp.async.commit.group");
    }

    /// Waits until all groups of copies of a thread but the last so many are done.
    pub fn wait_for_copies(&mut self, but: u64) {
        self.line(&format!("nvvm.cp.async.wait.group {but}"));
    }

    /// Four tiles of 8 by 8 numbers of 16 bits, of which each lane names 8 in shared memory, `at` bytes behind `base`; each lane gets two of each
    /// tile.
    pub fn load_tiles(&mut self, base: Val, at: Val) -> [Val; 4] {
        let at = self.widen_unsigned(at, Elem::I64);
        let at = self.offset(base, at);
        self.load_tiles_at(at, false)
    }

    /// The same at an address in shared memory. `turned`: with rows for columns.
    pub fn load_tiles_at(&mut self, at: Val, turned: bool) -> [Val; 4] {
        let how = if turned { ".trans" } else { "" };
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        let tuple = "!llvm.struct<(i32, i32, i32, i32)>";
        self.line(&format!("{id}_3 = llvm.addrspacecast {at} : !llvm.ptr to !llvm.ptr<3>"));
        self.line(&format!(
            "{id}_4 = llvm.call_intrinsic \"llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4{how}.b16\"({id}_3) : (!llvm.ptr<3>) -> {tuple}"
        ));
        [0, 1, 2, 3].map(|i| self.op(Ty::scalar(Elem::I32), &format!("llvm.extractvalue {id}_4[{i}] : {tuple}")))
    }

    /// `sums` and the products of 16 rows by 8 columns over 16 inputs, as a warp holds them.
    pub fn tile_dot(&mut self, dot: TileDot, rows: [Val; 4], columns: [Val; 2], sums: [Val; 4]) -> [Val; 4] {
        let TileDot(name) = dot;
        let ids: Vec<String> = rows.iter().chain(&columns).chain(&sums).map(ToString::to_string).collect();
        let tuple = "!llvm.struct<(f32, f32, f32, f32)>";
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!(
            "{id}_4 = llvm.call_intrinsic \"{name}\"({}) : (i32, i32, i32, i32, i32, i32, f32, f32, f32, f32) -> {tuple}",
            ids.join(", ")
        ));
        [0, 1, 2, 3].map(|i| self.op(Ty::scalar(Elem::F32), &format!("llvm.extractvalue {id}_4[{i}] : {tuple}")))
    }

    /// `sums` and the products of 16 rows by 8 columns over 32 inputs of 8 bits, as a warp holds them.
    pub fn byte_tile_dot(&mut self, dot: ByteTileDot, rows: [Val; 4], columns: [Val; 2], sums: [Val; 4]) -> [Val; 4] {
        let ByteTileDot(name) = dot;
        let ids: Vec<String> = rows.iter().chain(&columns).chain(&sums).map(ToString::to_string).collect();
        let tuple = "!llvm.struct<(i32, i32, i32, i32)>";
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        let types = vec!["i32"; ids.len()].join(", ");
        self.line(&format!("{id}_4 = llvm.call_intrinsic \"{name}\"({}) : ({types}) -> {tuple}", ids.join(", ")));
        [0, 1, 2, 3].map(|i| self.op(Ty::scalar(Elem::I32), &format!("llvm.extractvalue {id}_4[{i}] : {tuple}")))
    }

    /// `N` words that each thread has an address of its own for, aligned to all of them.
    pub fn load_words<const N: usize>(&mut self, at: Val) -> [Val; N] {
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!("{id}_4 = llvm.load {at} {{alignment = {} : i64}} : !llvm.ptr -> vector<{N}xi32>", N * 4));
        std::array::from_fn(|i| {
            self.op(Ty::scalar(Elem::I32), &format!("vector.extract {id}_4[{i}] : i32 from vector<{N}xi32>"))
        })
    }

    /// Of the threads of a warp, those in which a condition holds: each is the bit of its number.
    pub fn ballot(&mut self, condition: Val) -> Val {
        let all = self.int(-1, Ty::scalar(Elem::I32));
        self.op(
            Ty::scalar(Elem::I32),
            &format!("llvm.call_intrinsic \"llvm.nvvm.vote.ballot.sync\"({all}, {condition}) : (i32, i1) -> i32"),
        )
    }

    /// How many bits are set.
    pub fn count_bits(&mut self, bits: Val) -> Val {
        let text = self.text(bits.ty);
        self.op(bits.ty, &format!("llvm.intr.ctpop({bits}) : ({text}) -> {text}"))
    }

    /// Two numbers rounded to bf16 in one word, the first in its lower half.
    pub fn narrow_pair(&mut self, low: Val, high: Val) -> Val {
        let pair = self.fresh(Ty::scalar(Elem::I32));
        self.line(&format!(
            "{pair}_2 = llvm.call_intrinsic \"llvm.nvvm.ff2bf16x2.rn\"({high}, {low}) : (f32, f32) -> vector<2xbf16>"
        ));
        self.line(&format!("{pair} = llvm.bitcast {pair}_2 : vector<2xbf16> to i32"));
        pair
    }

    /// `2^x` to 22 bits; 0 far below.
    pub fn quick_exp2(&mut self, x: Val) -> Val {
        self.intrinsic("llvm.nvvm.ex2.approx.ftz.f", &[x], x.ty)
    }

    /// Of two words, both lower halves in one word, or both upper ones: those of the first word below.
    pub fn halves(&mut self, words: [Val; 2], upper: bool) -> Val {
        let which = self.int(if upper { 0x7632 } else { 0x5410 }, Ty::scalar(Elem::I32));
        self.intrinsic("llvm.nvvm.prmt", &[words[0], words[1], which], Ty::scalar(Elem::I32))
    }

    /// Four such words where a condition holds, zeros elsewhere. Words leave the branch one by one: vectors that do are held in pairs of registers on GPUs that have
    /// instructions for two f32, for which others are spilled.
    fn load_four_if(&mut self, at: Val, there: Val) -> [Val; 4] {
        let zero = self.int(0, Ty::scalar(Elem::I32));
        // The body cannot fail.
        let words = self.if_else(there, &[zero; 4], |w| Ok(w.load_words::<4>(at).to_vec())).unwrap_or_default();
        [0, 1, 2, 3].map(|i| words.get(i).copied().unwrap_or(zero))
    }

    /// Stores four words of a thread's own, at an address that is a multiple of 16.
    pub fn store_four(&mut self, words: [Val; 4], at: Val) {
        let id = self.fresh(Ty::scalar(Elem::I32));
        let list = words.map(|word| word.to_string()).join(", ");
        self.line(&format!("{id} = vector.from_elements {list} : vector<4xi32>"));
        self.line(&format!("llvm.store {id}, {at} {{alignment = 16 : i64}} : vector<4xi32>, !llvm.ptr"));
    }

    /// Stores a thread's own scalar where a condition holds.
    pub fn store_own_if(&mut self, value: Val, at: Val, condition: Val) {
        self.line(&format!("scf.if {condition} {{"));
        self.depth += 1;
        self.store_own(value, at);
        self.depth -= 1;
        self.line("}");
    }

    /// Eight numbers of 16 bits from an address that may not be a multiple of 16, as four words; zeros unless `there`.
    pub fn load_eight(&mut self, at: Val, there: Val) -> [Val; 4] {
        let i32s = Ty::scalar(Elem::I32);
        let address = self.address(at);
        let last = self.int(15, address.ty);
        let odd = self.and(address, last);
        let zero = self.int(0, address.ty);
        let aligned = self.cmp(Cmp::Eq, odd, zero);
        let whole = self.and(there, aligned);
        let words = self.load_four_if(at, whole);
        let one = self.int(1, aligned.ty);
        let other = self.xor(aligned, one);
        let by_half = self.and(there, other);
        let words = words.to_vec();
        let out = self.if_else(by_half, &words, |w| {
            Ok((0..4)
                .map(|i| {
                    let [low, high] = [0, 2].map(|half| {
                        let at = w.offset_const(at, i * 4 + half);
                        let x = w.load(Ty::scalar(Elem::I16), at);
                        w.widen_unsigned(x, Elem::I32)
                    });
                    let high = w.shl(high, 16);
                    w.or(low, high)
                })
                .collect())
        });
        // The body cannot fail.
        let out = out.unwrap_or(words);
        let zero = self.int(0, i32s);
        [0, 1, 2, 3].map(|i| out.get(i).copied().unwrap_or(zero))
    }

    /// Shared memory of so many bytes that the launch brings, whose size the code does not know. A kernel has one.
    pub fn shared_of_launch(&mut self) -> Val {
        use std::fmt::Write as _;
        let _ = writeln!(
            self.globals,
            "  llvm.mlir.global external @brought() {{addr_space = 3 : i32, alignment = 16 : i64}} : !llvm.array<0 x i8>"
        );
        self.shared_address("brought")
    }

    /// As [`sync`](Self::sync), among the threads of a group alone.
    pub fn sync_group(&mut self) {
        let all = self.int(-1, Ty::scalar(Elem::I32));
        self.line(&format!("nvvm.bar.warp.sync {all} : i32"));
    }

    /// What four threads in a row hold, brought to one in all of them.
    pub fn over_four(&mut self, x: Val, of: impl Fn(&mut Self, Val, Val) -> Val) -> Val {
        [1, 2].into_iter().fold(x, |x, distance| {
            let other = self.shuffle(x, distance);
            of(self, x, other)
        })
    }
}
