//! Profiles: where the schedules of a target depart from those that the compiler chooses by itself, as they were measured on a machine.
//!
//! A profile is a JSON file. It names the target and the processor that it was measured for, and for each family of kernels the fields of the
//! schedule that it sets, each within what the generator can do. How weights and caches lie is no part of it: one packed copy serves all schedules.
//!
//! [`Profile::parse`] promises known fields of the right types; what a target can do with them is the target's to say
//! ([`Target::with_profile`](super::Target::with_profile)).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::Blocks;

use super::cpu::schedule::Regime;

/// The version of the form that is written and read.
pub const VERSION: u64 = 1;

/// Schedules that were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the form.
    pub profile: u64,
    /// Who measured: name and version.
    pub xfc: String,
    /// The target, resolved: processor or level, and features.
    pub target: String,
    /// The processor's name, as its system says it.
    pub processor: String,
    /// Threads that it was measured with.
    pub threads: usize,
    /// When it was measured.
    pub date: String,
    /// Products with weights.
    #[serde(default)]
    pub products: Vec<ProductEntry>,
    /// Attention.
    #[serde(default)]
    pub attention: Vec<AttentionEntry>,
    /// The file that it was read from, for messages.
    #[serde(skip)]
    pub file: String,
}

/// A family of kernels that share a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Products with weights.
    Product(Product),
    /// Attention.
    Attention(Attention),
}

/// A family of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Product {
    /// Of weights: `f32`, `bf16`, `int8:g32`.
    #[serde(with = "operand")]
    pub operand: DType,
    /// Matrices that are multiplied with the same inputs.
    pub parts: usize,
    /// Rows of a launch.
    pub rows: Regime,
}

/// A family of attentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attention {
    /// Of queries.
    pub query: Float,
    /// Of keys and values.
    pub kept: Kept,
    /// Rows of a launch.
    pub rows: Regime,
}

/// The type of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// The type of keys and values in caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits with scales.
    Int8,
}

/// What is set for a family of products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductEntry {
    /// Of weights.
    #[serde(with = "operand")]
    pub operand: DType,
    /// Matrices that are multiplied with the same inputs.
    pub parts: usize,
    /// Rows of a launch.
    pub rows: Regime,
    /// The fields that depart.
    pub set: ProductFields,
    /// What it brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What is set for a family of attentions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionEntry {
    /// Of queries.
    pub query: Float,
    /// Of keys and values.
    pub kept: Kept,
    /// Rows of a launch.
    pub rows: Regime,
    /// The fields that depart.
    pub set: AttentionFields,
    /// What it brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Fields of a [`LinearSchedule`](crate::mlir::schedule::LinearSchedule), where they depart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductFields {
    /// Rows of the register tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_rows: Option<u32>,
    /// Vectors of each matrix in the register tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<u32>,
    /// Independent accumulators for successive inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chains: Option<u32>,
    /// Steps of the inner loop written out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unroll: Option<u32>,
    /// Bytes that weights are asked for ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<u64>,
    /// Whether the next panel is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_panel: Option<bool>,
    /// Rows of a tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_tile: Option<u64>,
}

/// Fields of an [`AttentionSchedule`](crate::mlir::schedule::AttentionSchedule), where they depart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionFields {
    /// Queries of a register tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<u32>,
    /// Pages of keys in a register tile of scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages_per_tile: Option<u32>,
    /// Pages of a block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<u32>,
    /// Most vectors of values in a register tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_vectors: Option<u32>,
    /// About how many queries a tile has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_queries: Option<u64>,
}

/// The fields of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// Of a product.
    Product(ProductFields),
    /// Of an attention.
    Attention(AttentionFields),
}

/// Speeds of a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// `GB/s`, `GFLOP/s`.
    pub unit: String,
    /// With the schedule that the compiler chooses by itself.
    pub default: f64,
    /// With what is set.
    pub chosen: f64,
}

/// Why a profile is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It was measured for another target.
    #[error("is a profile of {found}, and this is {here}")]
    Elsewhere {
        /// Whose it is.
        found: String,
        /// What code is generated for.
        here: String,
    },
    /// It is no profile, or sets what cannot be.
    #[error("{}{problem}", place(.at))]
    Wrong {
        /// The field: `products[1].set.vectors`; empty: the whole file.
        at: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn place(at: &str) -> String {
    if at.is_empty() { String::new() } else { format!("{at} ") }
}

impl ProfileError {
    /// Something wrong with a field.
    pub(crate) fn wrong(at: impl Into<String>, problem: impl Into<String>) -> Self {
        ProfileError::Wrong { at: at.into(), problem: problem.into() }
    }

    /// What to do.
    pub fn help(&self) -> &'static str {
        match self {
            ProfileError::Elsewhere { .. } => "measure here with `xfc tune`, or compile with `--tuned none`",
            ProfileError::Wrong { .. } => {
                "correct the file, measure again with `xfc tune`, or compile with `--tuned none`"
            }
        }
    }
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// Text that is no JSON or no profile, an unknown version, fields that do not exist or have another type, a family twice.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let wrong = |problem: String| ProfileError::wrong("", problem);
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
        match &value["profile"] {
            Value::Null => return Err(wrong("is no profile: it has no `profile` with a version".into())),
            version if version.as_u64() != Some(VERSION) => {
                return Err(wrong(format!("is a profile of version {version}, and this xfc reads version {VERSION}")));
            }
            _ => {}
        }
        // From the text again, so that messages name its lines.
        let profile: Profile = serde_json::from_str(text).map_err(|e| wrong(format!("is no profile: {e}")))?;
        let families: Vec<(String, Family)> = profile.families().collect();
        for (i, (at, family)) in families.iter().enumerate() {
            if let Some((first, _)) = families[..i].iter().find(|(_, known)| known == family) {
                return Err(ProfileError::wrong(at, format!("is of {family}, as {first} is: give a family once")));
            }
        }
        Ok(profile)
    }

    /// The families that something is set for, each with its place in the file.
    pub fn families(&self) -> impl Iterator<Item = (String, Family)> + '_ {
        let products = self.products.iter().enumerate().map(|(i, e)| (format!("products[{i}]"), e.family()));
        let attention = self.attention.iter().enumerate().map(|(i, e)| (format!("attention[{i}]"), e.family()));
        products.chain(attention)
    }

    /// What is set for a family of products.
    pub fn product(&self, family: &Product) -> ProductFields {
        let own = self.products.iter().find(|entry| entry.family() == Family::Product(*family));
        own.map_or_else(ProductFields::default, |entry| entry.set)
    }

    /// What is set for a family of attentions.
    pub fn attention(&self, family: &Attention) -> AttentionFields {
        let own = self.attention.iter().find(|entry| entry.family() == Family::Attention(*family));
        own.map_or_else(AttentionFields::default, |entry| entry.set)
    }

    /// The same with nothing set for a family.
    #[must_use]
    pub fn without(mut self, family: Family) -> Self {
        self.products.retain(|entry| entry.family() != family);
        self.attention.retain(|entry| entry.family() != family);
        self
    }

    /// The same with what is set for one family, instead of what was.
    #[must_use]
    pub fn with(self, family: Family, fields: Fields, measured: Option<Measured>) -> Self {
        let mut profile = self.without(family);
        match (family, fields) {
            (Family::Product(Product { operand, parts, rows }), Fields::Product(set)) => {
                profile.products.push(ProductEntry { operand, parts, rows, set, measured });
            }
            (Family::Attention(Attention { query, kept, rows }), Fields::Attention(set)) => {
                profile.attention.push(AttentionEntry { query, kept, rows, set, measured });
            }
            _ => {}
        }
        profile
    }

    /// As a file has it.
    pub fn to_text(&self) -> String {
        // A structure of numbers and texts is always JSON.
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }
}

impl ProductEntry {
    fn family(&self) -> Family {
        Family::Product(Product { operand: self.operand, parts: self.parts, rows: self.rows })
    }
}

impl AttentionEntry {
    fn family(&self) -> Family {
        Family::Attention(Attention { query: self.query, kept: self.kept, rows: self.rows })
    }
}

impl Family {
    /// Nothing set.
    pub fn no_fields(&self) -> Fields {
        match self {
            Family::Product(_) => Fields::Product(ProductFields::default()),
            Family::Attention(_) => Fields::Attention(AttentionFields::default()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Family::Product(of) => {
                let parts = if of.parts > 1 { format!(" x {}", of.parts) } else { String::new() };
                write!(f, "{}{parts}, {}", operand::name(of.operand), rows(of.rows))
            }
            Family::Attention(of) => {
                let (query, kept) = (format!("{:?}", of.query), format!("{:?}", of.kept));
                write!(f, "attention {} over {}, {}", query.to_lowercase(), kept.to_lowercase(), rows(of.rows))
            }
        }
    }
}

fn rows(regime: Regime) -> &'static str {
    match regime {
        Regime::One => "1 row",
        Regime::Few => "few rows",
        Regime::Many => "many rows",
    }
}

impl fmt::Display for Fields {
    /// `micro_rows 7, vectors 4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match self {
            Fields::Product(fields) => serde_json::to_value(fields),
            Fields::Attention(fields) => serde_json::to_value(fields),
        };
        let list = |map: &serde_json::Map<String, Value>| -> Vec<String> {
            map.iter().map(|(name, value)| format!("{name} {value}")).collect()
        };
        f.write_str(&value.ok().as_ref().and_then(Value::as_object).map(list).unwrap_or_default().join(", "))
    }
}

/// Types of weights, as `--dtype` and `--quant` say them.
pub mod operand {
    use super::{Blocks, DType};
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// `f32`, `bf16`, `int8:g32`.
    pub fn name(operand: DType) -> String {
        match operand {
            DType::Blocks(blocks) => format!("{}:g{}", blocks.form.name(), blocks.group),
            other => other.to_string(),
        }
    }

    /// The type of this name, of those that products have.
    pub fn parse(name: &str) -> Option<DType> {
        let of_blocks = |name: &str| {
            let (form, group) = name.split_once(":g")?;
            Blocks::parse(&format!("{form}g{group}")).filter(|blocks| blocks.is_weights() && !blocks.stored)
        };
        match name {
            "f32" => Some(DType::F32),
            "bf16" => Some(DType::BF16),
            other => of_blocks(other).map(DType::Blocks),
        }
    }

    /// As in a file.
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(operand: &DType, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&name(*operand))
    }

    /// As in a file.
    ///
    /// # Errors
    /// A name that products do not have.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = || {
            D::Error::custom(format!("`{text}` is no type of weights: they are f32, bf16, int8:g32, int4:g64 and such"))
        };
        parse(&text).ok_or_else(wrong)
    }
}
