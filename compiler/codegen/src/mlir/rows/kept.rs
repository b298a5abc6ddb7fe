//! What caches keep in 8 bits: heads rounded to integers, or to floats, with a scale for each group, which lie before the elements in a page.
//!
//! Where it lies elsewhere, because something in the row or another kernel reads it, it is the rounded numbers in f32.

use xfc_lang::graph::blocks::Blocks;
use xfc_lang::graph::{DType, ValueId};

use super::view::View;
use super::{Body, Row};
use crate::error::CodegenError;
use crate::mlir::expr::cast;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::{HeadPage, PageLayout, Sink};

/// Where a head goes: integers and scales, and perhaps the rounded numbers.
struct Places<'v> {
    integers: &'v View,
    scales: &'v View,
    rounded: Option<&'v View>,
}

impl Body<'_> {
    /// Rounds a value to what a cache keeps, and sends it to its sinks.
    pub(super) fn round_to_keep(
        &mut self,
        w: &mut Writer,
        x: ValueId,
        value: ValueId,
        sinks: &[usize],
    ) -> Result<(), CodegenError> {
        let Some(blocks) = self.graph.ty(value).dtype.blocks() else {
            return Err(CodegenError::bug("rows", "blocks of another type"));
        };
        let view = self.view_of(w, x)?;
        let is_page = |s: &usize| matches!(self.spec.sinks[*s].1, Sink::Cache { .. });
        let (pages, others): (Vec<usize>, Vec<usize>) = sinks.iter().partition(|s| is_page(s));
        let is_read = !self.graph.uses(value).is_empty() || !others.is_empty();
        let rounded = match is_read {
            true => Some(self.target(w, value, &others, &view.dims)?),
            false => None,
        };
        self.keep_in_blocks(w, &view, blocks, rounded.as_ref(), &pages)?;
        match rounded {
            None => Ok(()),
            Some(rounded) => {
                self.values.insert(value, Row::Memory(rounded));
                self.deliver(w, value, &others, true)
            }
        }
    }

    /// Rounds the heads of a value, into `rounded` and the pages of caches.
    pub(super) fn keep_in_blocks(
        &mut self,
        w: &mut Writer,
        view: &View,
        blocks: Blocks,
        rounded: Option<&View>,
        pages: &[usize],
    ) -> Result<(), CodegenError> {
        let mut view = view.clone();
        if !view.unit_last() {
            let copy = self.scratch(w, view.elem, &view.dims);
            self.copy(w, &view, &copy)?;
            view = copy;
        }
        let Some((dim, lead)) = view.dims.split_last() else {
            return Err(CodegenError::bug("rows", "blocks of one number"));
        };
        let groups = dim.div_ceil(u64::from(blocks.group));
        let integers = self.scratch(w, Elem::I8, &view.dims);
        let scales = self.scratch(w, Elem::I16, &[lead, &[groups]].concat());
        let places = Places { integers: &integers, scales: &scales, rounded };
        self.outer(w, &view.dims, lead.len(), Vec::new(), &mut |w, outer| {
            for group in 0..groups {
                let first = group * u64::from(blocks.group);
                let n = u64::from(blocks.group).min(dim - first);
                self.group_to_keep(w, (&view, blocks), &outer, (group, first, n), &places)?;
            }
            Ok(())
        })?;
        w.sync();
        for sink in pages {
            self.copy_to_page(w, &places, blocks, *sink)?;
        }
        Ok(())
    }

    /// Rounds `n` elements of a head from `first` on, which share a scale.
    fn group_to_keep(
        &self,
        w: &mut Writer,
        (view, blocks): (&View, Blocks),
        outer: &[Val],
        (group, first, n): (u64, u64, u64),
        places: &Places<'_>,
    ) -> Result<(), CodegenError> {
        let last = view.dims.len() - 1;
        let x = view.slice(w, last, first, n);
        let integers = places.integers.slice(w, last, first, n);
        let rounded = places.rounded.map(|view| view.slice(w, last, first, n));
        let load = |w: &mut Writer, i: Val, lanes: u32, mask: Option<Val>| {
            let x = x.load(w, &[outer, &[i]].concat(), lanes, mask);
            cast(w, x, Elem::F32)
        };
        let nothing = [w.f32(0.0, self.lanes), w.f32(0.0, 0)];
        let most = self.last_dim(w, n, true, &nothing, &mut |w, i, lanes, mask, most| {
            let x = load(w, i, lanes, mask)?;
            let x = w.fabs(x);
            // Behind a mask there are zeros.
            let which = usize::from(lanes == 0);
            let mut most = most.to_vec();
            most[which] = w.max(most[which], x);
            Ok(most)
        })?;
        let of_lanes = w.reduce_max(most[0]);
        let most = w.max(of_lanes, most[1]);
        let in_floats = blocks.form.is_float();
        let range = w.f32(if in_floats { 448.0 } else { 127.0 }, 0);
        let mut scale = w.div(most, range);
        if in_floats {
            // Times infinity no float of 8 bits is a number, as no integer is that an infinite element becomes; 448 would be infinity.
            let zero = w.f32(0.0, 0);
            let none = w.mul(scale, zero);
            scale = w.add(scale, none);
        }
        let stored = w.to_bf16(scale);
        let at = w.i64(group as i64);
        places.scales.store(w, stored, &[outer, &[at]].concat(), None);
        let scale = w.from_bf16(stored);
        let (zero, one) = (w.f32(0.0, 0), w.f32(1.0, 0));
        let inverse = w.div(one, scale);
        let least = w.f32(f64::from(f32::MIN_POSITIVE), 0);
        // What has no inverse is 0, and so are the elements.
        let is_tiny = w.cmp(Cmp::Lt, scale, least);
        let inverse = w.select(is_tiny, zero, inverse);
        self.last_dim(w, n, true, &[], &mut |w, i, lanes, mask, _| {
            let x = load(w, i, lanes, mask)?;
            let inverse = w.splat(inverse, lanes);
            let x = w.mul(x, inverse);
            // What is no number has a scale that is none.
            let element = if in_floats { w.to_e4m3(x) } else { w.nearest_byte(x) };
            let at = [outer, &[i]].concat();
            let byte = w.resize(element, Elem::I8);
            integers.store(w, byte, &at, mask);
            if let Some(rounded) = &rounded {
                let element = if in_floats { w.from_e4m3(element, 0) } else { w.to_float(element) };
                let scale = w.splat(scale, lanes);
                let x = w.mul(element, scale);
                rounded.store(w, x, &at, mask);
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Copies integers and scales to the page of the row.
    fn copy_to_page(
        &self,
        w: &mut Writer,
        places: &Places<'_>,
        blocks: Blocks,
        sink: usize,
    ) -> Result<(), CodegenError> {
        let Sink::Cache { layout, page_tokens: tokens, .. } = self.spec.sinks[sink].1 else {
            return Err(CodegenError::bug("rows", "a page that is no cache's"));
        };
        let (page, token) = self.page_of(w, sink)?;
        let dims = &places.integers.dims;
        let dim = match dims[..] {
            [dim] | [_, dim] => dim,
            _ => return Err(CodegenError::unsupported(format!("a cached value of dimensions {dims:?}"), "")),
        };
        let head = HeadPage { dim, tokens, dtype: DType::Blocks(blocks) };
        let elements = w.offset_const(page, head.scale_bytes());
        let mut integers = places.integers.clone();
        let (base, strides) = match layout {
            PageLayout::TokensLast => (w.element(elements, token, 1), [head.bytes(), tokens]),
            PageLayout::TokensMiddle => (w.element(elements, token, dim), [head.bytes(), 1]),
            // Pairs are moved as what they fill.
            PageLayout::DimPairs => {
                let mut pairs = dims.clone();
                pairs.iter_mut().skip(dims.len() - 1).for_each(|dim| *dim /= 2);
                integers = View::contiguous(integers.base, Elem::I16, &pairs);
                (w.element(elements, token, 2), [head.bytes() / 2, tokens])
            }
            PageLayout::TokenPairs => {
                let two = w.i64(2);
                let pair = w.div_unsigned(token, two);
                let half = w.rem_unsigned(token, two);
                let base = w.element(elements, pair, 2 * dim);
                (w.offset(base, half), [head.bytes(), 2])
            }
        };
        let skip = 2 - dims.len();
        let view = View { base, elem: integers.elem, dims: integers.dims.clone(), strides: strides[skip..].to_vec() };
        self.copy(w, &integers, &view)?;
        let scale = Ty::scalar(Elem::I16);
        let base = w.element(page, token, scale.elem.bytes());
        let strides = [head.bytes() / scale.elem.bytes(), tokens];
        let dims = places.scales.dims.clone();
        let view = View { base, elem: scale.elem, dims, strides: strides[skip..].to_vec() };
        self.copy(w, places.scales, &view)
    }
}
