//! What the [`Writer`] writes for teams of four warps that multiply out of shared memory what others bring there: barriers that count arrivals and bytes,
//! copies of many bytes, and the products.
//!
//! Such a barrier has phases, which end when all that it counts has come: who waits for one gives its lowest bit, and is not held where that phase is over. The
//! first has the bit 0, so that a wait for 1 lets through whoever asks before it ends.
//!
//! A place in shared memory is a number of 32 bits here.

use std::fmt::Write as _;
use std::ops::Range;

use super::machine::TeamDot;
use super::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::error::CodegenError;

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

    /// The same at the meeting point of a number, of 16 that there are.
    pub fn meet(&mut self, number: Val, threads: Val) {
        self.assembly("bar.sync $0, $1;", &[number, threads]);
    }

    /// As [`meet`](Self::meet), without waiting for the others.
    pub fn pass(&mut self, number: Val, threads: Val) {
        self.assembly("bar.arrive $0, $1;", &[number, threads]);
    }

    /// `if condition { then } else { otherwise }`, without results.
    ///
    /// # Errors
    /// Those of the bodies; the text is then incomplete.
    pub fn if_either(
        &mut self,
        condition: Val,
        then: impl FnOnce(&mut Self) -> Result<(), CodegenError>,
        otherwise: impl FnOnce(&mut Self) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.line(&format!("scf.if {condition} {{"));
        self.depth += 1;
        then(self)?;
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        otherwise(self)?;
        self.depth -= 1;
        self.line("}");
        Ok(())
    }

    /// The same number, of which it is not known that it is: what is made of it is made here, and takes no registers elsewhere.
    pub fn anew(&mut self, number: Val) -> Val {
        let (kind, bits) = if number.ty == I64 { ("l", 64) } else { ("r", 32) };
        let ty = self.text(number.ty);
        let text = format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"mov.b{bits} $0, $1;\", \"={kind},{kind}\" {number} : ({ty}) -> {ty}"
        );
        self.op(number.ty, &text)
    }

    /// From here on each thread of this team has so many registers, a multiple of 8, which is more than it had, or less: more are given when others have given them
    /// back.
    pub fn set_registers(&mut self, registers: u32, more: bool) {
        let how = if more { "inc" } else { "dec" };
        self.assembly(&format!("setmaxnreg.{how}.sync.aligned.u32 {registers};"), &[]);
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

    /// Products of rows and columns that descriptors name, by which a matrix of so many columns begins; waits until they are there.
    pub fn products(&mut self, dot: TeamDot, factors: &[[Matrix; 2]], columns: u64) -> Vec<Val> {
        let mut text = Products::new(columns as usize / 2);
        text.fence();
        text.begin_with(dot, 0, factors);
        text.wait(0);
        self.run(text, &[])
    }

    /// Begins such products, and behind them others, which are added to `sums`: of rows in registers by columns that descriptors name. Waits for the first alone. Before
    /// it begins it meets the others `at` a point, and when all is begun it passes the other: 32-bit numbers. Gives products, and sums that nothing touches before
    /// [`end_sums`](Self::end_sums) has given them back; until then what the rows of the second are held in keeps its value.
    pub fn begin_both(
        &mut self,
        dot: TeamDot,
        first: (&[[Matrix; 2]], u64),
        second: (&[([Val; 4], Matrix)], &[Val]),
        at: [Val; 3],
    ) -> (Vec<Val>, Vec<Val>) {
        let n = first.1 as usize / 2;
        let mut text = Products::new(n);
        text.keep(second.1);
        text.turn("sync", at[0], at[2]);
        text.fence();
        text.begin_with(dot, 0, first.0);
        text.commit();
        text.add_rows_held(dot, n, second.0);
        text.commit();
        text.turn("arrive", at[1], at[2]);
        text.wait_but(1);
        let mut all = self.run(text, second.1);
        let sums = all.split_off(n);
        (all, sums)
    }

    /// Adds to `sums` products of rows in registers and columns that descriptors name, and waits for them.
    pub fn add_products(&mut self, dot: TeamDot, factors: &[([Val; 4], Matrix)], sums: &[Val]) -> Vec<Val> {
        let mut text = Products::new(0);
        text.keep(sums);
        text.fence();
        text.add_rows_held(dot, 0, factors);
        text.wait(0);
        self.run(text, sums)
    }

    /// Begins to add to ranges of `sums` products of rows and columns in shared memory, the outputs of columns side by side: early ones, for which it waits, and late ones, before
    /// [`end_products`](Self::end_products) of which nothing touches the sums.
    pub fn begin_halves(
        &mut self,
        dot: TeamDot,
        early: &[(Range<usize>, [Matrix; 2])],
        late: &[(Range<usize>, [Matrix; 2])],
        sums: &[Val],
    ) -> Vec<Val> {
        let mut text = Products::new(0);
        text.keep(sums);
        text.fence();
        for factors in [early, late] {
            text.add_outputs(dot, factors);
            text.commit();
        }
        text.wait_but(1);
        self.run(text, sums)
    }

    /// The same numbers of f32, made no later than here whatever they are used for.
    pub fn made(&mut self, numbers: &[Val]) -> Vec<Val> {
        self.assembly_on_sums("", numbers, &[])
    }

    /// Waits for the sums of [`begin_both`](Self::begin_both); `others`, which a thread holds too, are used no sooner.
    pub fn end_sums(&mut self, sums: &[Val], others: &[Val]) -> (Vec<Val>, Vec<Val>) {
        let mut all = self.end_products(&[sums, others].concat());
        let others = all.split_off(sums.len());
        (all, others)
    }

    /// The sums of products: those that begin with them, then the others.
    fn run(&mut self, products: Products, sums: &[Val]) -> Vec<Val> {
        let Products { text, new, kept, operands } = products;
        let text = format!("{{ .reg .pred p, z; .reg .b64 a, b; setp.eq.u32 p, 0, 0; setp.ne.u32 z, 0, 0; {text}}}");
        debug_assert_eq!(kept, sums.len());
        self.assembly_on(&text, new, sums, &operands)
    }

    /// Instructions that change sums, `$0` and on, in their registers; their other operands, of 64 bits, follow twice as many numbers behind.
    fn assembly_on_sums(&mut self, text: &str, sums: &[Val], operands: &[Val]) -> Vec<Val> {
        self.assembly_on(text, 0, sums, operands)
    }

    /// The same with so many sums before the others that they begin.
    fn assembly_on(&mut self, text: &str, new: usize, sums: &[Val], operands: &[Val]) -> Vec<Val> {
        let n = new + sums.len();
        let results = vec!["=f".to_owned(); n].into_iter();
        let same = (new..n).map(|i| i.to_string());
        let kind = |v: &Val| (if v.ty == I64 { "l" } else { "r" }).to_owned();
        let rest = operands.iter().map(kind).chain(["~{memory}".to_owned()]);
        let constraints: Vec<String> = results.chain(same).chain(rest).collect();
        let ids: Vec<String> = sums.iter().chain(operands).map(ToString::to_string).collect();
        let types = sums.iter().chain(operands).map(|v| self.text(v.ty)).collect::<Vec<_>>().join(", ");
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

/// A matrix so many bytes behind the one that a descriptor names.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// The descriptor.
    pub first: Val,
    /// A multiple of 16.
    pub behind: u64,
}

/// Assembly of products that is being written: sums that begin with them are `$0` and on, behind them those that are added to, twice, and other operands.
struct Products {
    text: String,
    new: usize,
    kept: usize,
    operands: Vec<Val>,
}

impl Products {
    fn new(new: usize) -> Self {
        Products { text: String::new(), new, kept: 0, operands: Vec::new() }
    }

    /// Has sums that are added to; before any operand.
    fn keep(&mut self, sums: &[Val]) {
        self.kept = sums.len();
    }

    fn operand(&mut self, value: Val) -> String {
        self.operands.push(value);
        format!("${}", self.new + 2 * self.kept + self.operands.len() - 1)
    }

    /// A matrix's descriptor, in a register of a name. Places in descriptors are of 16 bytes, and what is added to them stays within.
    fn descriptor(&mut self, name: &str, matrix: Matrix) {
        let first = match self.operands.iter().position(|known| *known == matrix.first) {
            Some(known) => format!("${}", self.new + 2 * self.kept + known),
            None => self.operand(matrix.first),
        };
        let _ = write!(self.text, "add.s64 {name}, {first}, {}; ", matrix.behind >> 4);
    }

    fn fence(&mut self) {
        self.text += "wgmma.fence.sync.aligned; ";
    }

    fn commit(&mut self) {
        self.text += "wgmma.commit_group.sync.aligned; ";
    }

    fn wait_but(&mut self, groups: u64) {
        let _ = write!(self.text, "wgmma.wait_group.sync.aligned {groups}; ");
    }

    fn wait(&mut self, groups: u64) {
        self.commit();
        self.wait_but(groups);
    }

    fn turn(&mut self, how: &str, at: Val, threads: Val) {
        let (at, threads) = (self.operand(at), self.operand(threads));
        let _ = write!(self.text, "bar.{how} {at}, {threads}; ");
    }

    fn own(first: usize, n: usize) -> String {
        (first..first + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
    }

    /// Sums from a number on that begin with products of rows and columns in shared memory, the inputs of both side by side.
    fn begin_with(&mut self, TeamDot(before, behind): TeamDot, first: usize, factors: &[[Matrix; 2]]) {
        let (n, columns) = (self.new, 2 * self.new);
        for (i, [rows, others]) in factors.iter().enumerate() {
            self.descriptor("a", *rows);
            self.descriptor("b", *others);
            let own = Self::own(first, n);
            let adds = if i == 0 { "z" } else { "p" };
            let _ = write!(self.text, "{before}{columns}{behind} {{{own}}}, a, b, {adds}, 1, 1, 0, 0; ");
        }
    }

    /// Ranges of sums to which products are added, of rows and columns in shared memory, the outputs of columns side by side.
    fn add_outputs(&mut self, TeamDot(before, behind): TeamDot, factors: &[(Range<usize>, [Matrix; 2])]) {
        for (range, [rows, others]) in factors {
            let (own, columns) = (Self::own(range.start, range.len()), 2 * range.len());
            self.descriptor("a", *rows);
            self.descriptor("b", *others);
            let _ = write!(self.text, "{before}{columns}{behind} {{{own}}}, a, b, p, 1, 1, 0, 1; ");
        }
    }

    /// Sums from a number on to which products are added, of rows in registers and columns in shared memory whose outputs lie side by side.
    fn add_rows_held(&mut self, TeamDot(before, behind): TeamDot, first: usize, factors: &[([Val; 4], Matrix)]) {
        let (n, columns) = (self.kept, 2 * self.kept);
        for (rows, others) in factors {
            let rows = rows.map(|row| self.operand(row)).join(", ");
            self.descriptor("b", *others);
            let own = Self::own(first, n);
            let _ = write!(self.text, "{before}{columns}{behind} {{{own}}}, {{{rows}}}, b, p, 1, 1, 1; ");
        }
    }
}

/// How the lines of a matrix lie in shared memory: rows, or columns of what they are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Eight lines' chunks of 16 bytes together, one after another.
    Chunks = 0,
    /// 128 bytes of a line together, from a multiple of 1024 on, their chunks changing places by the lowest three bits of the line's number.
    Turned = 1,
    /// The same of 64 bytes, from a multiple of 512 on: by the two bits above the lowest of the line's number.
    TurnedHalves = 2,
    /// The same of 32 bytes, from a multiple of 256 on: by the bit above the lowest two.
    TurnedQuarters = 3,
}
