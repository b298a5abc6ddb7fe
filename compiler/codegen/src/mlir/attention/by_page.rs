//! A block of keys for all queries of a tile, page by page and each for all heads: the keys of the whole block, then the softmaxes, then the values.

use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::blocks::{Block, Blocks, Micro, Segment};
use crate::error::CodegenError;

impl Blocks<'_> {
    /// All register tiles and a block.
    pub(super) fn by_page(&self, w: &mut Writer, segment: &Segment, block: &Block) -> Result<(), CodegenError> {
        self.each_register_tile(w, segment, |w, micro| {
            let (n_keys, whole) = self.look(w, segment, block, micro)?;
            let [zero, one] = [0, 1].map(|x| w.i64(x));
            let whole = w.select(whole, one, zero);
            for (array, x) in [(self.layout.seen, n_keys), (self.layout.whole, whole)] {
                let at = self.cell(w, array, micro.number, 8);
                w.store(x, at);
            }
            Ok(())
        })?;
        self.each_page(w, segment, |w, micro, _, page| self.score_pages(w, micro, page))?;
        self.each_register_tile(w, segment, |w, micro| {
            let zero = w.i64(0);
            let n_keys = self.recall(w, self.layout.seen, micro);
            let some = w.cmp(Cmp::Lt, zero, n_keys);
            w.if_then(some, |w| {
                let whole = self.recall(w, self.layout.whole, micro);
                let whole = w.cmp(Cmp::Ne, whole, zero);
                self.shares_of(w, segment, (block, n_keys), micro, whole)
            })
        })?;
        self.each_page(w, segment, |w, micro, n_keys, page| self.weigh(w, micro, n_keys, Some(page)))
    }

    fn recall(&self, w: &mut Writer, array: u64, micro: Micro) -> Val {
        let at = self.cell(w, array, micro.number, 8);
        w.load(Ty::scalar(Elem::I64), at)
    }

    /// A loop over the pages of a block, and for each over the register tiles that look at it: `body(tile, keys that it looks at, page)`.
    fn each_page(
        &self,
        w: &mut Writer,
        segment: &Segment,
        body: impl FnOnce(&mut Writer, Micro, Val, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let (begin, end) = (w.i64(0), w.i64(i64::from(self.schedule.pages)));
        w.for_loop(begin, end, 1, &[], |w, page, _| {
            let page_tokens = w.i64(self.at.spec.page_tokens as i64);
            let before = w.mul(page, page_tokens);
            self.each_register_tile(w, segment, |w, micro| {
                let n_keys = self.recall(w, self.layout.seen, micro);
                let some = w.cmp(Cmp::Lt, before, n_keys);
                w.if_then(some, |w| body(w, micro, n_keys, page))
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }
}
