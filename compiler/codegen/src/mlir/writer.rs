//! Writes one kernel as MLIR text: typed values in, one line an operation out.
//!
//! Given element types and lane counts it keeps every operation well typed; the kernels above it read as the loop nests they
//! generate. Only builtin-typed operations of `arith`, `scf`, `vector` and memory operations of `llvm` are used, so that one short
//! pipeline lowers every kernel. Memory is addressed by byte through `!llvm.ptr`.

use std::fmt::{self, Write as _};

use super::machine::Machine;
use crate::error::CodegenError;

/// Element type of a value in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Boolean.
    I1,
    /// A boolean in memory, or an integer of a product of bytes.
    I8,
    /// bf16 bits, or part of a pair.
    I16,
    /// bf16 as an operand of a dot product, never of arithmetic.
    BF16,
    /// f16, only to be widened.
    F16,
    /// Positions in masks, float bits.
    I32,
    /// Indices and ids.
    I64,
    /// The type everything is computed in.
    F32,
    /// Products of f32 without rounding; never in memory.
    F64,
    /// Address; never in a vector.
    Ptr,
}

impl Elem {
    pub(super) fn text(self) -> &'static str {
        match self {
            Elem::I1 => "i1",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::BF16 => "bf16",
            Elem::F16 => "f16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
            Elem::Ptr => "!llvm.ptr",
        }
    }

    /// Whether arithmetic on it is floating.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F64)
    }

    /// Bytes in memory.
    pub fn bytes(self) -> u64 {
        match self {
            Elem::I1 | Elem::I8 => 1,
            Elem::I16 | Elem::BF16 | Elem::F16 => 2,
            Elem::I32 | Elem::F32 => 4,
            Elem::I64 | Elem::F64 | Elem::Ptr => 8,
        }
    }
}

/// Type of a value: a scalar when `lanes` is 0, else a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    /// Element type.
    pub elem: Elem,
    /// Lanes; 0 for a scalar.
    pub lanes: u32,
}

impl Ty {
    /// A scalar type.
    pub const fn scalar(elem: Elem) -> Self {
        Ty { elem, lanes: 0 }
    }

    /// A type of `lanes` lanes; a scalar when 0.
    pub const fn of(elem: Elem, lanes: u32) -> Self {
        Ty { elem, lanes }
    }

    /// The same lanes with another element type.
    pub fn with(self, elem: Elem) -> Self {
        Ty { elem, ..self }
    }
}

/// A value of the kernel being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Val {
    id: u32,
    /// Which result of an operation with several.
    port: Option<u32>,
    /// Its type.
    pub ty: Ty,
}

impl Val {
    /// What a thread holds, taken for something else of the same form: its lane of a vector for a scalar, or the other way round.
    pub(super) fn with(self, ty: Ty) -> Val {
        Val { ty, ..self }
    }
}

/// Where a table's elements lie that differs from lane to lane: element `i` of lane `l` is `i * stride + first[l]` elements behind its address.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Elements from one element to the next.
    pub stride: u64,
    /// First element of each lane.
    pub first: Val,
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => write!(f, "%v{}", self.id),
            Some(port) => write!(f, "%v{}#{port}", self.id),
        }
    }
}

/// Comparison predicates, for floats (ordered) and signed integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the usual six")]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// The text of one module under construction.
#[derive(Debug)]
pub struct Writer {
    symbol: String,
    machine: Machine,
    pub(super) globals: String,
    pub(super) n_globals: usize,
    body: String,
    next: u32,
    pub(super) depth: usize,
    /// Operands of the launch that were asked for.
    pub(super) n_buffers: usize,
}

/// The parameters of a kernel: see [`KernelFn`](xfc_runtime::artifact::abi::KernelFn).
#[derive(Clone, Copy, Debug)]
pub struct KernelParams {
    /// `*const XfmArgs`.
    pub args: Val,
    /// First tile, as i64.
    pub tile_begin: Val,
    /// One past the last tile, as i64.
    pub tile_end: Val,
    /// The worker's scratch.
    pub scratch: Val,
}

impl Writer {
    /// An empty module for a kernel of a name.
    pub(super) fn new(symbol: &str, machine: &Machine) -> Self {
        Writer {
            symbol: symbol.to_owned(),
            machine: *machine,
            globals: String::new(),
            n_globals: 0,
            body: String::new(),
            next: 0,
            depth: 2,
            n_buffers: 0,
        }
    }

    /// The parameters of a function that is called with the tiles to do.
    pub(super) fn enter_function(&mut self) -> KernelParams {
        let [args, begin, end, scratch] =
            [Elem::Ptr, Elem::I32, Elem::I32, Elem::Ptr].map(|elem| self.fresh(Ty::scalar(elem)));
        let [tile_begin, tile_end] = [begin, end].map(|v| self.widen_unsigned(v, Elem::I64));
        KernelParams { args, tile_begin, tile_end, scratch }
    }

    /// Name of the function.
    pub(super) fn symbol(&self) -> &str {
        &self.symbol
    }

    /// What the kernel is written for.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Ends the function; gives the module's text and the bytes of scratch that a worker must bring, of the `scratch_bytes` that the kernel uses.
    pub fn finish(mut self, scratch_bytes: u64) -> (String, u64) {
        let (head, scratch_bytes) = if self.is_block() {
            self.leave_block(scratch_bytes)
        } else {
            let head = format!("func.func @{}(%v0: !llvm.ptr, %v1: i32, %v2: i32, %v3: !llvm.ptr) {{", self.symbol);
            (head, scratch_bytes)
        };
        self.line(if self.is_block() { "llvm.return" } else { "return" });
        (format!("module {{\n{}  {head}\n{}  }}\n}}\n", self.globals, self.body), scratch_bytes)
    }

    /// Of a type, what a thread holds.
    pub(super) fn text(&self, ty: Ty) -> String {
        match ty.lanes / self.machine.threads {
            0 => ty.elem.text().to_owned(),
            1 if self.is_block() => ty.elem.text().to_owned(),
            own => format!("vector<{own}x{}>", ty.elem.text()),
        }
    }

    /// Whether a thread holds several elements of a type.
    pub(super) fn is_vector(&self, ty: Ty) -> bool {
        ty.lanes / self.machine.threads > u32::from(self.is_block())
    }

    pub(super) fn line(&mut self, text: &str) {
        for _ in 0..self.depth {
            self.body.push_str("  ");
        }
        self.body.push_str(text);
        self.body.push('\n');
    }

    pub(super) fn fresh(&mut self, ty: Ty) -> Val {
        let id = self.next;
        self.next += 1;
        Val { id, port: None, ty }
    }

    pub(super) fn op(&mut self, ty: Ty, text: &str) -> Val {
        let v = self.fresh(ty);
        let line = format!("{v} = {text}");
        self.line(&line);
        v
    }

    pub(super) fn convert(&mut self, name: &str, a: Val, to: Ty) -> Val {
        self.op(to, &format!("{name} {} : {} to {}", a, self.text(a.ty), self.text(to)))
    }

    pub(super) fn binary(&mut self, name: &str, a: Val, b: Val) -> Val {
        debug_assert_eq!(a.ty, b.ty, "{name}");
        self.op(a.ty, &format!("{name} {}, {} : {}", a, b, self.text(a.ty)))
    }

    /// A float constant, in all lanes.
    pub fn f32(&mut self, value: f64, lanes: u32) -> Val {
        let ty = Ty::of(Elem::F32, lanes);
        let bits = (value as f32).to_bits();
        let value = if self.is_vector(ty) { format!("dense<0x{bits:08X}>") } else { format!("0x{bits:08X}") };
        self.op(ty, &format!("arith.constant {value} : {}", self.text(ty)))
    }

    /// An integer or boolean constant, in all lanes.
    pub fn int(&mut self, value: i64, ty: Ty) -> Val {
        let shown = if ty.elem == Elem::I1 {
            if value != 0 { "true".into() } else { "false".to_string() }
        } else {
            value.to_string()
        };
        let text = match (self.is_vector(ty), ty.elem) {
            (false, Elem::I1) => format!("arith.constant {shown}"),
            (false, _) => format!("arith.constant {shown} : {}", self.text(ty)),
            _ => format!("arith.constant dense<{shown}> : {}", self.text(ty)),
        };
        self.op(ty, &text)
    }

    /// An index constant.
    pub fn i64(&mut self, value: i64) -> Val {
        self.int(value, Ty::scalar(Elem::I64))
    }

    /// A constant of different lanes.
    pub fn lanes(&mut self, values: &[i64], elem: Elem) -> Val {
        let ty = Ty::of(elem, values.len() as u32);
        if self.is_block() {
            return self.lanes_of_block(values, ty);
        }
        let list: Vec<String> =
            values.iter().map(|v| if elem == Elem::I1 { (*v != 0).to_string() } else { v.to_string() }).collect();
        self.op(ty, &format!("arith.constant dense<[{}]> : {}", list.join(", "), self.text(ty)))
    }

    /// `base + bytes`.
    pub fn offset(&mut self, base: Val, bytes: Val) -> Val {
        debug_assert_eq!(bytes.ty, Ty::scalar(Elem::I64));
        self.op(
            Ty::scalar(Elem::Ptr),
            &format!("llvm.getelementptr {}[{}] : (!llvm.ptr, i64) -> !llvm.ptr, i8", base, bytes),
        )
    }

    /// `base + bytes`, known when compiling.
    pub fn offset_const(&mut self, base: Val, bytes: u64) -> Val {
        if bytes == 0 {
            return base;
        }
        self.op(Ty::scalar(Elem::Ptr), &format!("llvm.getelementptr {}[{bytes}] : (!llvm.ptr) -> !llvm.ptr, i8", base))
    }

    /// Loads a scalar, or consecutive lanes, aligned to the element only.
    pub fn load(&mut self, ty: Ty, from: Val) -> Val {
        self.load_aligned(ty, from, ty.elem.bytes())
    }

    /// The same, aligned to so many bytes.
    pub fn load_aligned(&mut self, ty: Ty, from: Val, alignment: u64) -> Val {
        let from = self.own_place(from, ty);
        self.op(ty, &format!("llvm.load {from} {{alignment = {alignment} : i64}} : !llvm.ptr -> {}", self.text(ty)))
    }

    /// Asks for the cache line at an address, which need not be memory: for the first level of caches, or for the second.
    pub fn prefetch(&mut self, at: Val, level: u32) {
        if self.is_block() {
            return;
        }
        let hint = 4 - level;
        self.line(&format!(
            "\"llvm.intr.prefetch\"({at}) <{{cache = 1 : i32, hint = {hint} : i32, rw = 0 : i32}}> : (!llvm.ptr) -> ()"
        ));
    }

    /// Stores a scalar, or consecutive lanes, aligned to the element only.
    pub fn store(&mut self, value: Val, to: Val) {
        if self.is_block() && value.ty.lanes == 0 {
            return self.store_once(value, to);
        }
        let to = self.own_place(to, value.ty);
        self.store_own(value, to);
    }

    pub(super) fn store_own(&mut self, value: Val, to: Val) {
        let line = format!(
            "llvm.store {}, {} {{alignment = {} : i64}} : {}, !llvm.ptr",
            value,
            to,
            value.ty.elem.bytes(),
            self.text(value.ty)
        );
        self.line(&line);
    }

    /// Loads the lanes whose mask is set; the others are zero and not touched in memory.
    pub fn load_masked(&mut self, ty: Ty, from: Val, mask: Val) -> Val {
        if self.is_block() {
            return self.load_if(ty, from, mask);
        }
        let zero = if ty.elem.is_float() { self.f32(0.0, ty.lanes) } else { self.int(0, ty) };
        self.op(
            ty,
            &format!(
                "llvm.intr.masked.load {}, {}, {} {{alignment = {} : i32}} : (!llvm.ptr, {}, {}) -> {}",
                from,
                mask,
                zero,
                ty.elem.bytes(),
                self.text(mask.ty),
                self.text(ty),
                self.text(ty)
            ),
        )
    }

    /// Stores the lanes whose mask is set.
    pub fn store_masked(&mut self, value: Val, to: Val, mask: Val) {
        if self.is_block() {
            return self.store_if(value, to, mask);
        }
        let line = format!(
            "llvm.intr.masked.store {}, {}, {} {{alignment = {} : i32}} : {}, {} into !llvm.ptr",
            value,
            to,
            mask,
            value.ty.elem.bytes(),
            self.text(value.ty),
            self.text(mask.ty)
        );
        self.line(&line);
    }

    /// `for i in begin..end step step { carried = body(i, carried) }`.
    ///
    /// # Errors
    /// Those of the body; the text is then incomplete.
    pub fn for_loop(
        &mut self,
        begin: Val,
        end: Val,
        step: i64,
        carried: &[Val],
        body: impl FnOnce(&mut Self, Val, &[Val]) -> Result<Vec<Val>, CodegenError>,
    ) -> Result<Vec<Val>, CodegenError> {
        let step = self.i64(step);
        let i = self.fresh(Ty::scalar(Elem::I64));
        let inner: Vec<Val> = carried.iter().map(|c| self.fresh(c.ty)).collect();
        let (results, mut head) = self.results_like(carried);
        let _ = write!(head, "scf.for {i} = {begin} to {end} step {step}");
        if !carried.is_empty() {
            let args: Vec<String> = inner.iter().zip(carried).map(|(a, c)| format!("{a} = {c}")).collect();
            let types: Vec<String> = carried.iter().map(|c| self.text(c.ty)).collect();
            let _ = write!(head, " iter_args({}) -> ({})", args.join(", "), types.join(", "));
        }
        head.push_str(" : i64 {");
        self.line(&head);
        self.depth += 1;
        let out = body(self, i, &inner)?;
        debug_assert_eq!(out.len(), carried.len());
        self.yield_values(&out);
        self.depth -= 1;
        self.line("}");
        Ok(results)
    }

    /// New values of the types of others, and the beginning of the line that defines them.
    fn results_like(&mut self, others: &[Val]) -> (Vec<Val>, String) {
        match others {
            [] => (Vec::new(), String::new()),
            [one] => {
                let result = self.fresh(one.ty);
                (vec![result], format!("{result} = "))
            }
            several => {
                let pack = self.fresh(several[0].ty).id;
                let results = several.iter().zip(0..).map(|(c, port)| Val { id: pack, port: Some(port), ty: c.ty });
                (results.collect(), format!("%v{pack}:{} = ", several.len()))
            }
        }
    }

    /// `if condition { then } else { otherwise }`, with as many results as there are values in `otherwise`, at least one.
    ///
    /// # Errors
    /// Those of the body; the text is then incomplete.
    pub fn if_else(
        &mut self,
        condition: Val,
        otherwise: &[Val],
        then: impl FnOnce(&mut Self) -> Result<Vec<Val>, CodegenError>,
    ) -> Result<Vec<Val>, CodegenError> {
        let (results, mut head) = self.results_like(otherwise);
        let types: Vec<String> = otherwise.iter().map(|v| self.text(v.ty)).collect();
        let _ = write!(head, "scf.if {condition} -> ({}) {{", types.join(", "));
        self.line(&head);
        self.depth += 1;
        let out = then(self)?;
        debug_assert_eq!(out.len(), otherwise.len());
        self.yield_values(&out);
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        self.yield_values(otherwise);
        self.depth -= 1;
        self.line("}");
        Ok(results)
    }

    /// `if condition { then }`.
    ///
    /// # Errors
    /// Those of the body; the text is then incomplete.
    pub fn if_then(
        &mut self,
        condition: Val,
        then: impl FnOnce(&mut Self) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.line(&format!("scf.if {} {{", condition));
        self.depth += 1;
        then(self)?;
        self.depth -= 1;
        self.line("}");
        Ok(())
    }

    fn yield_values(&mut self, values: &[Val]) {
        if values.is_empty() {
            return;
        }
        let ids: Vec<String> = values.iter().map(ToString::to_string).collect();
        let types: Vec<String> = values.iter().map(|v| self.text(v.ty)).collect();
        self.line(&format!("scf.yield {} : {}", ids.join(", "), types.join(", ")));
    }
}
