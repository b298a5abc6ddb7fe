//! Constant arrays of the [`Writer`], and elements gathered from them and from other tables.

use std::fmt::Write as _;

use super::writer::{Elem, Spread, Ty, Val, Writer};

impl Writer {
    /// The address of a constant array of floats.
    pub fn table_f32(&mut self, values: &[f64]) -> Val {
        let list: Vec<String> = values.iter().map(|v| format!("0x{:08X}", (*v as f32).to_bits())).collect();
        self.table(Elem::F32, &list)
    }

    /// The address of a constant array of integers.
    pub fn table_int(&mut self, values: &[f64], elem: Elem) -> Val {
        let list: Vec<String> = values.iter().map(|v| (*v as i64).to_string()).collect();
        self.table(elem, &list)
    }

    fn table(&mut self, elem: Elem, values: &[String]) -> Val {
        let name = format!("table{}", self.n_globals);
        self.n_globals += 1;
        let (n, ty) = (values.len(), elem.text());
        let _ = writeln!(
            self.globals,
            "  llvm.mlir.global private constant @{name}(dense<[{}]> : tensor<{n}x{ty}>) {{addr_space = 0 : i32, alignment = 64 : i64}} : !llvm.array<{n} x {ty}>",
            values.join(", "),
        );
        self.op(Ty::scalar(Elem::Ptr), &format!("llvm.mlir.addressof @{name} : !llvm.ptr"))
    }

    /// `table[index]` lane by lane, the table having `n` elements. An index outside reads the nearest element: no lane reads elsewhere,
    /// also those whose result is not used.
    pub fn gather(&mut self, elem: Elem, table: Val, index: Val, n: u64) -> Val {
        let index = self.inside(index, n);
        self.gather_at(elem, table, index)
    }

    /// The same of a table whose elements lie spread, each lane's at places of its own.
    pub fn gather_spread(&mut self, elem: Elem, table: Val, index: Val, n: u64, spread: Spread) -> Val {
        let index = self.inside(index, n);
        let index = self.splat(index, spread.first.ty.lanes);
        let stride = self.int(i64::try_from(spread.stride).unwrap_or(i64::MAX), index.ty);
        let index = self.mul(index, stride);
        let first = self.resize(spread.first, index.ty.elem);
        let index = self.add(index, first);
        self.gather_at(elem, table, index)
    }

    /// The nearest of `0 .. n`.
    fn inside(&mut self, index: Val, n: u64) -> Val {
        let lowest = self.int(0, index.ty);
        let highest = self.int(i64::try_from(n).unwrap_or(i64::MAX).saturating_sub(1), index.ty);
        let index = self.max(index, lowest);
        self.min(index, highest)
    }

    fn gather_at(&mut self, elem: Elem, table: Val, index: Val) -> Val {
        if !self.is_vector(index.ty) {
            let lanes = index.ty.lanes;
            let index = self.resize(index, Elem::I64).with(Ty::scalar(Elem::I64));
            let at = self.element(table, index, elem.bytes());
            return self.load(Ty::scalar(elem), at).with(Ty::of(elem, lanes));
        }
        let lanes = index.ty.lanes;
        let ty = Ty::of(elem, lanes);
        let pointers = format!("vector<{lanes}x!llvm.ptr>");
        let at = self.fresh(Ty::of(Elem::Ptr, lanes));
        let line = format!(
            "{at} = llvm.getelementptr {table}[{index}] : (!llvm.ptr, {}) -> {pointers}, {}",
            self.text(index.ty),
            elem.text()
        );
        self.line(&line);
        let all = self.int(1, Ty::of(Elem::I1, lanes));
        let zero = if elem.is_float() { self.f32(0.0, lanes) } else { self.int(0, ty) };
        self.op(
            ty,
            &format!(
                "llvm.intr.masked.gather {at}, {all}, {zero} {{alignment = {} : i32}} : ({pointers}, {}, {}) -> {}",
                elem.bytes(),
                self.text(all.ty),
                self.text(ty),
                self.text(ty)
            ),
        )
    }
}
