//! What the [`Writer`] writes for teams of four warps that multiply out of shared memory what others bring there: barriers that count arrivals and bytes,
//! copies of many bytes, and the products.
//!
//! Such a barrier has phases, which end when all that it counts has come: who waits for one gives its lowest bit, and is not held where that phase is over. The
//! first has the bit 0, so that a wait for 1 lets through whoever asks before it ends.
//!
//! A place in shared memory is a number of 32 bits here.

use super::machine::TeamDot;
use super::writer::{Cmp, Elem, Ty, Val, Writer};

const I32: Ty = Ty::scalar(Elem::I32);
const I64: Ty = Ty::scalar(Elem::I64);

impl Writer {
    /// The place of an address in shared memory.
    pub fn shared_place(&mut self, at: Val) -> Val {
        let place = self.fresh(I32);
        self.line(&format!("{place}_3 = llvm.addrspacecast {at} : !llvm.ptr to !llvm.ptr<3>"));
        self.line(&format!("{place} = llvm.ptrtoint {place}_3 : !llvm.ptr<3> to i32"));
        place
    }

    /// The first multiple of `alignment`, a power of two, in shared memory from `at` on, which a name of that memory is.
    pub fn aligned_shared(&mut self, at: Val, alignment: u64) -> Val {
        let place = self.shared_place(at);
        let zero = self.int(0, I32);
        let before = self.sub(zero, place);
        let last = self.int(alignment as i64 - 1, I32);
        let missing = self.and(before, last);
        let missing = self.widen_unsigned(missing, Elem::I64);
        let aligned = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!(
            "{aligned}_3 = llvm.getelementptr {at}_3[{missing}] : (!llvm.ptr<3>, i64) -> !llvm.ptr<3>, i8"
        ));
        self.line(&format!("{aligned} = llvm.addrspacecast {aligned}_3 : !llvm.ptr<3> to !llvm.ptr"));
        aligned
    }

    /// An instruction that LLVM has no name for, of operands `$0`, `$1` ... that are numbers of 32 or 64 bits.
    pub(super) fn assembly(&mut self, text: &str, operands: &[Val]) {
        let kinds: Vec<&str> = operands.iter().map(|v| if v.ty == I64 { "l" } else { "r" }).collect();
        let constraints = [&kinds[..], &["~{memory}"]].concat().join(",");
        let ids: Vec<String> = operands.iter().map(ToString::to_string).collect();
        let types: Vec<String> = operands.iter().map(|v| self.text(v.ty)).collect();
        self.line(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{constraints}\" {} : ({}) -> ()",
            ids.join(", "),
            types.join(", ")
        ));
    }

    /// Makes a barrier at a multiple of 8, each of whose phases has so many arrivals.
    pub fn make_barrier(&mut self, at: Val, arrivals: Val) {
        self.assembly("mbarrier.init.shared::cta.b64 [$0], $1;", &[at, arrivals]);
    }

    /// The barrier is memory again.
    pub fn end_barrier(&mut self, at: Val) {
        self.assembly("mbarrier.inval.shared::cta.b64 [$0];", &[at]);
    }

    /// This thread arrives.
    pub fn arrive(&mut self, at: Val) {
        self.assembly("mbarrier.arrive.shared::cta.b64 _, [$0];", &[at]);
    }

    /// The same, and the phase does not end before copies bring so many bytes (32 bits).
    pub fn arrive_and_expect(&mut self, at: Val, bytes: Val) {
        self.assembly("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", &[at, bytes]);
    }

    /// Waits until the phase with this lowest bit is over.
    pub fn wait_for_phase(&mut self, at: Val, bit: Val) {
        let done = self.fresh(I32);
        self.line("scf.while : () -> () {");
        self.line(&format!(
            "  {done} = llvm.inline_asm has_side_effects asm_dialect = att \"{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [$1], $2; selp.b32 $0, 1, 0, p; }}\", \"=r,r,r,~{{memory}}\" {at}, {bit} : (i32, i32) -> i32"
        ));
        self.line(&format!("  {done}_0 = arith.constant 0 : i32"));
        self.line(&format!("  {done}_1 = arith.cmpi eq, {done}, {done}_0 : i32"));
        self.line(&format!("  scf.condition({done}_1)"));
        self.line("} do {");
        self.line("  scf.yield");
        self.line("}");
    }

    /// What this thread did to shared memory so far comes before what others, told of it, have copies and products do there.
    pub fn order_shared(&mut self) {
        self.assembly("fence.proxy.async.shared::cta;", &[]);
    }

    /// Begins to copy `bytes` from memory to `to`, all three multiples of 16; the barrier counts them.
    pub fn copy_bytes(&mut self, to: Val, from: Val, bytes: u64, barrier: Val) {
        let global = self.fresh(I64);
        self.line(&format!("{global}_1 = llvm.addrspacecast {from} : !llvm.ptr to !llvm.ptr<1>"));
        self.line(&format!("{global} = llvm.ptrtoint {global}_1 : !llvm.ptr<1> to i64"));
        let text =
            format!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], {bytes}, [$2];");
        self.assembly(&text, &[to, global, barrier]);
    }

    /// So many bytes of memory that are 0, at a multiple of 16.
    pub fn zeros(&mut self, bytes: u64) -> Val {
        use std::fmt::Write as _;
        let name = format!("zeros{}", self.n_globals);
        self.n_globals += 1;
        let _ = writeln!(
            self.globals,
            "  llvm.mlir.global internal constant @{name}(dense<0> : tensor<{bytes}xi8>) {{addr_space = 1 : i32, alignment = 16 : i64}} : !llvm.array<{bytes} x i8>"
        );
        let zeros = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!("{zeros}_1 = llvm.mlir.addressof @{name} : !llvm.ptr<1>"));
        self.line(&format!("{zeros} = llvm.addrspacecast {zeros}_1 : !llvm.ptr<1> to !llvm.ptr"));
        zeros
    }

    /// Where so many threads wait for each other, of which this is one.
    pub fn sync_some(&mut self, threads: Val) {
        self.assembly("bar.sync 1, $0;", &[threads]);
    }

    /// Begins to add to `sums`, those of a team, products of rows and columns that descriptors name, and waits for those that were begun before: the sums are there
    /// when [`end_products`](Self::end_products) has given them back, and meanwhile nothing but this touches them.
    pub fn begin_products(&mut self, dot: TeamDot, factors: &[[Val; 2]], sums: &[Val]) -> Vec<Val> {
        let n = sums.len();
        let TeamDot(before, behind) = dot;
        let own: Vec<String> = (0..n).map(|i| format!("${i}")).collect();
        let mut text = "{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.fence.sync.aligned; ".to_owned();
        for i in 0..factors.len() {
            let (a, b) = (2 * (n + i), 2 * (n + i) + 1);
            let columns = 2 * n;
            text += &format!("{before}{columns}{behind} {{{}}}, ${a}, ${b}, p, 1, 1, 0, 0; ", own.join(", "));
        }
        text += "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; }";
        self.assembly_on_sums(&text, sums, &factors.concat())
    }

    /// Waits for all products that this thread's team has begun.
    pub fn end_products(&mut self, sums: &[Val]) -> Vec<Val> {
        self.assembly_on_sums("wgmma.wait_group.sync.aligned 0;", sums, &[])
    }

    /// Instructions that change sums, `$0` and on, in their registers; their other operands, of 64 bits, follow twice as many numbers behind.
    fn assembly_on_sums(&mut self, text: &str, sums: &[Val], operands: &[Val]) -> Vec<Val> {
        let n = sums.len();
        let results = vec!["=f".to_owned(); n].into_iter();
        let same = (0..n).map(|i| i.to_string());
        let rest = operands.iter().map(|_| "l".to_owned()).chain(["~{memory}".to_owned()]);
        let constraints: Vec<String> = results.chain(same).chain(rest).collect();
        let ids: Vec<String> = sums.iter().chain(operands).map(ToString::to_string).collect();
        let types = [vec!["f32"; n], vec!["i64"; operands.len()]].concat().join(", ");
        let tuple = format!("!llvm.struct<({})>", vec!["f32"; n].join(", "));
        let id = self.fresh(Ty::scalar(Elem::Ptr));
        self.line(&format!(
            "{id}_n = llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{}\" {} : ({types}) -> {tuple}",
            constraints.join(","),
            ids.join(", ")
        ));
        (0..n).map(|i| self.op(Ty::scalar(Elem::F32), &format!("llvm.extractvalue {id}_n[{i}] : {tuple}"))).collect()
    }

    /// Stores two numbers of a thread's own side by side, at a multiple of 8.
    pub fn store_two(&mut self, numbers: [Val; 2], at: Val) {
        let id = self.fresh(Ty::scalar(Elem::F32));
        self.line(&format!("{id} = vector.from_elements {}, {} : vector<2xf32>", numbers[0], numbers[1]));
        self.line(&format!("llvm.store {id}, {at} {{alignment = 8 : i64}} : vector<2xf32>, !llvm.ptr"));
    }

    /// What a descriptor of a matrix in shared memory says beside its place: how its inputs lie, and bytes from a chunk of 16 bytes to the next, and from eight
    /// lines to the next.
    pub fn descriptor(&mut self, place: Val, layout: Layout, (chunk, eight): (u64, u64)) -> Val {
        let rest = (chunk >> 4) << 16 | (eight >> 4) << 32 | (layout as u64) << 62;
        let place = self.shr(place, 4);
        let place = self.widen_unsigned(place, Elem::I64);
        let rest = self.i64(rest as i64);
        self.or(place, rest)
    }

    /// The number of a slot that comes behind another of so many, and the phase's bit, which turns over where they begin again.
    pub fn next_slot(&mut self, slot: Val, bit: Val, slots: u64) -> (Val, Val) {
        let (zero, one, n) = (self.int(0, I32), self.int(1, I32), self.int(slots as i64, I32));
        let next = self.add(slot, one);
        let is_last = self.cmp(Cmp::Eq, next, n);
        let turned = self.xor(bit, one);
        (self.select(is_last, zero, next), self.select(is_last, turned, bit))
    }
}

/// How the lines of a matrix lie in shared memory: rows, or columns of what they are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Eight lines' chunks of 16 bytes together, one after another.
    Chunks = 0,
    /// 128 bytes of a line together, from a multiple of 1024 on, their chunks changing places by the lowest three bits of the line's number.
    Turned = 1,
}
