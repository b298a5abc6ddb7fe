//! Launches of an attention whose keys are divided: where its parts go, and who makes them one.

use xfc_lang::graph::{AxisId, DType, Dim, Type};
use xfc_runtime::artifact::abi::ROWS_ALIGN;

use super::build::Planner;
use super::kernel::{CombineSpec, KernelSpec};
use super::place::{Operand, Place};
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;

impl Planner<'_> {
    /// Launches an attention with these operands, and what makes its parts one where it does not do that itself.
    pub(super) fn launch_parts(
        &mut self,
        (name, space, kernel): (&str, RowSpace, usize),
        mut operands: Vec<Operand>,
        combine: CombineSpec,
        out: &Place,
    ) -> Result<(), CodegenError> {
        // Only few rows have parts, while there is room for a multiple of `ROWS_ALIGN`: the rows of parts are longer than those of the buffer.
        let of_rows = |elements: u64| {
            let elements = elements.div_ceil(ROWS_ALIGN);
            Type::new(DType::F32, [Dim::Axis(AxisId(space.axis)), Dim::Fixed(elements)])
        };
        let parts = self.new_buffer(&of_rows(combine.step_elements()))?;
        operands.push(Operand::Place(parts.clone()));
        if combine.division.joined > 0 {
            let counters = Type { dtype: DType::I32, ..of_rows(combine.division.counters()) };
            operands.push(Operand::Place(self.counters(space.axis, &counters)?));
            self.launch(name, space, kernel, operands);
            return Ok(());
        }
        self.launch(name, space, kernel, operands);
        let kernel = self.intern_kernel(KernelSpec::Combine(combine));
        let operands = vec![Operand::Place(parts), Operand::Place(out.clone())];
        self.launch(&format!("{name} (parts)"), space, kernel, operands);
        Ok(())
    }

    /// Counters of an axis, which all launches share: zeros when the memory is given and behind each launch, so that nothing else may ever lie there.
    fn counters(&mut self, axis: usize, ty: &Type) -> Result<Place, CodegenError> {
        let known = self.counters.iter().find(|(of, _)| *of == axis).map(|(_, place)| place.clone());
        let Some(Place::Buffer { id, column_bytes, .. }) = known else {
            let place = self.new_buffer(ty)?;
            self.counters.push((axis, place.clone()));
            return Ok(place);
        };
        // Those of the attention with the most.
        let place = self.new_buffer(ty)?;
        let more = self.buffers.pop().map_or(0, |buffer| buffer.bytes_per_row);
        self.buffers[id].bytes_per_row = self.buffers[id].bytes_per_row.max(more);
        match place {
            Place::Buffer { row_stride, .. } => Ok(Place::Buffer { id, column_bytes, row_stride }),
            place => Ok(place),
        }
    }

    /// Keeps counters from the first of so many launches to the last.
    pub(super) fn keep_counters(&mut self, end: usize) {
        for (_, place) in &self.counters {
            if let Place::Buffer { id, .. } = place {
                let counters = &mut self.buffers[*id];
                (counters.first, counters.last) = (0, end);
            }
        }
    }
}
