//! What the caches of a session take: the plan's groups of pages, each with the formula by which the runtime rounds up.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xfc_codegen::kernels::Outline;
use xfc_lang::view::{bytes, digits};
use xfc_runtime::artifact::manifest::CacheGroup;
use xfc_runtime::cache::{CacheOptions, page_bytes, page_formula};

/// The pages of one group.
struct Pages<'o> {
    group: &'o CacheGroup,
    pages: u64,
    formula: String,
    /// Of a page, over all layers that keep one.
    page_bytes: u64,
}

/// All caches of a session.
pub(crate) struct Allocated<'o> {
    options: CacheOptions,
    groups: Vec<Pages<'o>>,
}

impl<'o> Allocated<'o> {
    /// What a session of these options allocates.
    pub(crate) fn of(outline: &'o Outline, options: CacheOptions) -> Self {
        let manifest = &outline.manifest;
        let pages = |group: &'o CacheGroup| {
            let (pages, formula) = page_formula(group, &options, options.limit(manifest, group.axis));
            Pages { group, pages, formula, page_bytes: page_bytes(group) }
        };
        Allocated { options, groups: manifest.caches.iter().map(pages).collect() }
    }

    fn bytes(&self) -> u64 {
        self.groups.iter().map(Pages::bytes).fold(0, u64::saturating_add)
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let CacheOptions { max_sequences, context_tokens, step_tokens, .. } = self.options;
        let sequences =
            if max_sequences == 1 { "1 sequence of".to_owned() } else { format!("{max_sequences} sequences, each of") };
        let mut out = format!(
            "allocated for {sequences} {} tokens, in steps of {}: whole pages, one of them empty\n",
            digits(context_tokens),
            digits(step_tokens)
        );
        for pages in &self.groups {
            let of = match pages.group.page_tokens {
                1 => String::new(),
                n => format!(" of {n} tokens"),
            };
            let _ = writeln!(
                out,
                "  {:<14} {} = {} pages{of}, {} bytes each: {}",
                pages.group.name,
                pages.formula,
                digits(pages.pages),
                digits(pages.page_bytes),
                bytes(pages.bytes())
            );
        }
        let _ = writeln!(out, "  {:<14} {} bytes: {}", "together", digits(self.bytes()), bytes(self.bytes()));
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let group = |p: &Pages<'_>| {
            json!({
                "name": p.group.name, "page_tokens": p.group.page_tokens, "page_bytes": p.page_bytes, "pages": p.pages, "formula": p.formula,
                "bytes": p.bytes(),
            })
        };
        json!({
            "sequences": self.options.max_sequences, "context_tokens": self.options.context_tokens, "step_tokens": self.options.step_tokens,
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(), "bytes": self.bytes(),
        })
    }
}

impl Pages<'_> {
    fn bytes(&self) -> u64 {
        self.pages.saturating_mul(self.page_bytes)
    }
}
