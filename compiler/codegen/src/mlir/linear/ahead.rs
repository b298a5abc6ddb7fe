//! What a product asks for before the launches before it have ended: the first bytes of the matrices that a block reads.
//!
//! They are where its tile's number says, whatever the rows hold, except of experts that rows choose. Memory that would be idle until the last launch has
//! ended, and until the first products wait for it, brings them to the caches meanwhile. Only in steps whose rows are one block: then no panel is asked for
//! twice, and a tile's number is that of its panels (a division takes registers that some products do not have).

use super::Linear;
use crate::mlir::ahead::LINE;
use crate::mlir::schedule::LinearSchedule;
use crate::mlir::writer::{Cmp, Val, Writer};
use crate::plan::kernel::LinearSpec;

/// Writes it for the product of a launch with these arguments, of a tile.
pub(super) fn ask_ahead(w: &mut Writer, (args, tile): (Val, Val), spec: &LinearSpec, schedule: &LinearSchedule) {
    let panels = schedule.panels_per_tile();
    let all = schedule.ahead_bytes / (panels * spec.parts as u64) / LINE * LINE;
    if all == 0 || spec.experts.is_some() {
        return;
    }
    let linear = Linear::new(w, args, spec, schedule);
    let bytes = all.min(linear.whole_bytes());
    if bytes == 0 {
        return;
    }
    let n_rows = linear.n_rows(w, args);
    let most = w.i64(schedule.rows_per_tile as i64);
    let is_one_block = w.cmp(Cmp::Le, n_rows, most);
    let size = w.i64(panels as i64);
    let first = w.mul(tile, size);
    let last = w.i64((linear.panels() * spec.heads) as i64 - 1);
    for number in 0..panels {
        let shift = w.i64(number as i64);
        let panel = w.add(first, shift);
        // The last tile may have fewer.
        let panel = if number == 0 { panel } else { w.min(panel, last) };
        for weights in &linear.weights {
            let at = w.element(weights.data, panel, linear.panel_bytes());
            w.ask_ahead(is_one_block, at, bytes);
        }
    }
}

impl Linear<'_> {
    /// Bytes of a panel until the last group of inputs that is whole, which are read one after another.
    fn whole_bytes(&self) -> u64 {
        match self.blocks() {
            Some(blocks) => {
                let panel = self.packed(blocks);
                self.spec.inputs / panel.group * panel.group_bytes()
            }
            None => self.spec.inputs / self.schedule.depth * self.group_bytes(),
        }
    }
}
