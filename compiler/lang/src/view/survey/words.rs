//! Attentions and what else is in a layer, in the field's words.

use super::attention::{Attention, number};
use super::layer::{LowRank, What};
use super::scalar::Sight;
use crate::view::magnitude::digits;

impl Attention {
    /// `grouped-query (GQA)`.
    pub(super) fn kind(&self) -> &'static str {
        match (self.latent, self.heads, self.kv_heads) {
            (Some(_), ..) => "latent (MLA)",
            (_, h, k) if h == k => "multi-head (MHA)",
            (_, _, 1) => "multi-query (MQA)",
            _ => "grouped-query (GQA)",
        }
    }

    pub(super) fn heads_text(&self) -> String {
        match self.latent {
            Some(kept) => {
                let queries = self.compressed_queries.map(|n| format!("; queries made of {}", digits(n)));
                format!(
                    "{}; keys and values made of {} kept a token{}",
                    self.heads,
                    digits(kept),
                    queries.unwrap_or_default()
                )
            }
            None if self.heads == self.kv_heads => self.heads.to_string(),
            None => format!("{}, {} of keys and values", self.heads, self.kv_heads),
        }
    }

    pub(super) fn width_text(&self) -> String {
        if self.key_width == self.value_width {
            self.key_width.to_string()
        } else {
            format!("{} of queries and keys, {} of values", self.key_width, self.value_width)
        }
    }

    pub(super) fn position_text(&self) -> Option<String> {
        let rotary = self.rotary.as_ref().map(|r| r.text(self.key_width));
        let bias = self.scores.bias.map(|b| format!("bias {b}"));
        match (rotary, bias) {
            (Some(r), Some(b)) => Some(format!("{r}, {b}")),
            (r, b) => r.or(b),
        }
    }

    pub(super) fn qk_norm_text(&self) -> Option<String> {
        self.qk_norm
            .as_ref()
            .map(|(n, by_head)| format!("{}, {}", n.text(), if *by_head { "each head" } else { "all heads together" }))
    }

    /// What else there is.
    pub(super) fn more(&self) -> Vec<String> {
        let mut more = Vec::new();
        more.extend(self.scores.cap.map(|c| format!("scores held under {}", number(c))));
        more.extend(self.scores.other.then(|| "scores changed".to_owned()));
        more.extend(self.sink.then(|| "sinks".to_owned()));
        more.extend(
            self.scale
                .map(|s| if s == 1.0 { "scores as they are".to_owned() } else { format!("scores × {}", number(s)) }),
        );
        more.extend(self.by_position.then(|| "queries scaled by position".to_owned()));
        more.extend(self.gated.then(|| "gated output".to_owned()));
        more
    }
}

impl Sight {
    pub(super) fn text(&self) -> String {
        match self {
            Sight::Before => "all before it".to_owned(),
            Sight::All => "everything".to_owned(),
            Sight::Window(n) => format!("the last {}", digits(*n)),
            Sight::Chunk(n) => format!("its chunk of {}", digits(*n)),
            Sight::Around(n) => format!("{} on either side", digits(*n)),
            Sight::Other(formula) => formula.clone(),
        }
    }
}

impl What {
    pub(super) fn word(&self) -> &'static str {
        match self {
            What::Attention(a) if a.cross => "cross-attention",
            What::Attention(_) => "attention",
            What::Feed(_) => "feed-forward",
            What::Mixer(m) => m.kind(),
            What::LowRank(_) => "low-rank product",
            What::Other(_) => "other",
        }
    }
}

impl LowRank {
    /// `2,048 → 64 → 2,048, what it reads added`.
    pub(super) fn text(&self, width: u64) -> String {
        let added = if self.residual { ", what it reads added (LAuReL)" } else { "" };
        format!("{} → {} → {}{added}", digits(width), digits(self.rank), digits(width))
    }
}
