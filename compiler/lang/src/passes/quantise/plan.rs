//! Plans: which matrices are held how, as `--quant` says it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::diagnostic::closest;
use crate::graph::blocks::{BlockForm, Blocks};
use crate::graph::path::{components, parameters};

/// What is rounded that fits nothing as it is stored.
pub(super) const ROUNDED: Blocks = Blocks { form: BlockForm::Int8, group: 32, stored: false };

/// Which matrices are held how: of the rules that fit a parameter's path, the last one decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub(super) rules: Vec<Rule>,
    /// What `stored` stands for.
    stored: StoredForms,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Components that stand one after another in the path, `*` for any one; empty fits all.
    pub(super) pattern: Vec<String>,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// As they are without a plan.
    None,
    Blocks(Blocks),
    /// As the checkpoint stores them, where it does so in few bits, and else as without a plan.
    Stored,
}

impl From<Option<Blocks>> for Format {
    fn from(blocks: Option<Blocks>) -> Self {
        blocks.map_or(Format::None, Format::Blocks)
    }
}

/// How the parameters of a checkpoint are held that it stores in few bits, by path.
pub type StoredForms = BTreeMap<String, StoredForm>;

/// How a parameter is held that a checkpoint stores in few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredForm {
    /// In these blocks.
    pub blocks: Blocks,
    /// The dimension whose neighbours share scales.
    pub along: usize,
}

/// Why a plan cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A format that does not exist.
    #[error(
        "'{0}' is no format of weights: they are int8, int4, uint8, uint4 (with a minimum) and fp8 (E4M3), each with a group of 32, 64 or 128 as in int4:g64; or stored, or none"
    )]
    Format(String),
    /// A pattern without a name.
    #[error(
        "'{0}' is no pattern: it is names of modules with dots between them, `*` for any one, as in layers.*.down_proj"
    )]
    Pattern(String),
    /// A pattern that no matrix fits.
    #[error("no matrix of a product is at '{pattern}'")]
    Unused {
        /// The pattern.
        pattern: String,
        /// The part of a path that is closest to it.
        meant: Option<String>,
    },
}

impl Plan {
    /// All matrices as they are stored.
    pub fn stored(forms: StoredForms) -> Self {
        Plan { rules: vec![Rule { pattern: Vec::new(), format: Format::Stored }], stored: forms }
    }

    /// A plan that holds all matrices in one way.
    pub fn all(blocks: Option<Blocks>) -> Self {
        Plan { rules: vec![Rule { pattern: Vec::new(), format: blocks.into() }], ..Plan::default() }
    }

    /// Adds a rule, which decides over those before it. `pattern` is components of paths, `*` for any one.
    pub fn add(&mut self, pattern: Vec<String>, blocks: Option<Blocks>) {
        self.rules.push(Rule { pattern, format: blocks.into() });
    }

    /// The plan with what `stored` stands for in it.
    #[must_use]
    pub fn with_stored(self, forms: StoredForms) -> Self {
        Plan { stored: forms, ..self }
    }

    /// Whether it says `stored` of any matrices.
    pub fn asks_for_stored(&self) -> bool {
        self.rules.iter().any(|rule| rule.format == Format::Stored)
    }

    /// Whether nothing is put into blocks.
    pub fn is_empty(&self) -> bool {
        self.rules.iter().all(|rule| match rule.format {
            Format::None => true,
            Format::Blocks(_) => false,
            Format::Stored => self.stored.is_empty(),
        })
    }

    /// What the matrix at `path` is held in, where its groups lie along its inputs.
    pub fn of(&self, path: &str) -> Option<Blocks> {
        match self.rules.iter().rfind(|rule| rule.fits(path))?.format {
            Format::None => None,
            Format::Blocks(blocks) => Some(blocks),
            Format::Stored => {
                let mut forms = parameters(path).into_iter().map(|path| Some(self.stored.get(&path)?.blocks));
                let first = forms.next()??;
                // Those of a stack that differ are rounded alike.
                forms.try_fold(first, |one, other| Some(if one == other? { one } else { ROUNDED }))
            }
        }
    }

    pub(super) fn is_stored(&self, path: &str) -> bool {
        self.rules.iter().rfind(|rule| rule.fits(path)).is_some_and(|rule| rule.format == Format::Stored)
    }

    /// The dimension of a parameter, or of a stack, whose neighbours share stored scales.
    pub(super) fn along(&self, path: &str) -> Option<usize> {
        let elements = parameters(path);
        let of_stack = usize::from(elements.first().is_none_or(|first| first != path));
        let mut along = elements.iter().map(|path| Some(self.stored.get(path)?.along + of_stack));
        let first = along.next().flatten()?;
        along.all(|other| other == Some(first)).then_some(first)
    }
}

impl Rule {
    /// That no path is fitted by it, and what is closest among as many components.
    pub(super) fn unused<'a>(&self, paths: impl Iterator<Item = &'a str>) -> PlanError {
        let part = |path: &str| -> Vec<String> {
            let path: Vec<&str> = components(path).collect();
            path.windows(self.pattern.len()).map(|part| part.join(".")).collect()
        };
        let parts: Vec<String> = paths.flat_map(part).collect();
        let pattern = self.pattern.join(".");
        let meant = closest(&pattern, parts.iter().map(String::as_str)).map(str::to_owned);
        PlanError::Unused { pattern, meant }
    }

    pub(super) fn fits(&self, path: &str) -> bool {
        let path: Vec<&str> = components(path).collect();
        let same = |(own, of): (&String, &&str)| own == "*" || own == of;
        let n = self.pattern.len();
        n == 0 || path.windows(n).any(|part| self.pattern.iter().zip(part).all(same))
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    /// `int4:g64,down_proj=int8:g32,lm_head=none`: a format without a pattern is for all. Rules may stand on lines of their own, and what
    /// follows a `#` on a line is a comment. What `stored` stands for
    /// is said later.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let rule = |item: &str| -> Result<Rule, PlanError> {
            let (pattern, format) = item.rsplit_once('=').map_or((None, item), |(p, f)| (Some(p.trim()), f.trim()));
            let pattern: Vec<String> = match pattern {
                None => Vec::new(),
                Some(names) => names.split('.').map(str::to_owned).collect(),
            };
            if pattern.iter().any(String::is_empty) {
                return Err(PlanError::Pattern(item.to_owned()));
            }
            let format = match format {
                "none" => Format::None,
                "stored" => Format::Stored,
                _ => Format::Blocks(parse_format(format).ok_or_else(|| PlanError::Format(format.to_owned()))?),
            };
            Ok(Rule { pattern, format })
        };
        let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(rules, _)| rules));
        let items = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty());
        let rules = items.map(rule).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err(PlanError::Format(String::new()));
        }
        Ok(Plan { rules, stored: StoredForms::new() })
    }
}

/// `int4`, `int4:g64`.
fn parse_format(text: &str) -> Option<Blocks> {
    let (form, group) = text.split_once(':').map_or((text, None), |(form, group)| (form, Some(group)));
    let form = BlockForm::ALL.into_iter().find(|f| f.name() == form && f.is_of_weights())?;
    let group = group.map_or(Some(form.usual_group()), |g| g.strip_prefix('g')?.parse().ok())?;
    Blocks::GROUPS.contains(&group).then(|| Blocks::weights(form, group))
}

impl fmt::Display for Plan {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<String> = self
            .rules
            .iter()
            .map(|rule| {
                let format = match rule.format {
                    Format::None => "none".to_owned(),
                    Format::Stored => "stored".to_owned(),
                    Format::Blocks(blocks) => format!("{}:g{}", blocks.form.name(), blocks.group),
                };
                if rule.pattern.is_empty() { format } else { format!("{}={format}", rule.pattern.join(".")) }
            })
            .collect();
        f.write_str(&rules.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_and_the_last_rule_decides() {
        let plan: Plan = "int4:g64, down_proj=int8, layers.0.*.q_proj=uint4:g128,lm_head=none".parse().unwrap();
        assert_eq!(plan.to_string(), "int4:g64,down_proj=int8:g32,layers.0.*.q_proj=uint4:g128,lm_head=none");
        assert_eq!(plan, plan.to_string().parse().unwrap());
        let held = |path: &str| plan.of(path).map(|b| b.to_string());
        assert_eq!(held("layers.1.self_attn.q_proj.weight").as_deref(), Some("int4g64"));
        assert_eq!(held("layers.0.self_attn.q_proj.weight").as_deref(), Some("uint4g128"));
        assert_eq!(held("layers.1.mlp.down_proj.weight").as_deref(), Some("int8g32"));
        assert_eq!(held("lm_head.weight"), None);
        assert_eq!(held("layers.10.mlp.up_proj.weight").as_deref(), Some("int4g64"));
        assert!("none".parse::<Plan>().unwrap().is_empty());
        let plan: Plan = "fp8,lm_head=fp8:g32".parse().unwrap();
        assert_eq!(plan.to_string(), "fp8:g128,lm_head=fp8:g32");
    }

    #[test]
    fn plans_are_read_from_lines_with_comments() {
        let lines = "# 4.5 bits a weight\nint4:g64  # all\n\n layers.0.mlp=int8,\nlm_head=none\n";
        assert_eq!(lines.parse::<Plan>(), "int4:g64,layers.0.mlp=int8,lm_head=none".parse());
        assert!("# nothing".parse::<Plan>().is_err());
        let mut made = Plan::all("int4:g64".parse::<Plan>().unwrap().of("any"));
        made.add(vec!["layers".to_owned(), "*".to_owned()], None);
        assert_eq!(made.to_string(), "int4:g64,layers.*=none");
    }

    #[test]
    fn what_is_stored_is_looked_up() {
        let eight = Blocks { stored: true, ..Blocks::weights(BlockForm::Int8, 32) };
        let four = Blocks { stored: true, ..Blocks::weights(BlockForm::Uint4, 64) };
        let forms = [("a.weight", eight, 1), ("e.0.w", four, 1), ("e.1.w", four, 1), ("e.2.w", eight, 0)];
        let forms: StoredForms =
            forms.map(|(path, blocks, along)| (path.to_owned(), StoredForm { blocks, along })).into();
        let plan: Plan = "stored,b=int4".parse().unwrap();
        assert!(plan.asks_for_stored() && !plan.is_empty() && plan.to_string() == "stored,b=int4:g32");
        let only: Plan = "stored".parse().unwrap();
        assert!(only.is_empty() && only.of("a.weight").is_none());
        assert_eq!(only.with_stored(forms.clone()), Plan::stored(forms.clone()));
        let plan = plan.with_stored(forms);
        assert_eq!((plan.of("a.weight"), plan.along("a.weight")), (Some(eight), Some(1)));
        assert_eq!((plan.of("e.{0..2}.w"), plan.along("e.{0..2}.w")), (Some(four), Some(2)));
        assert_eq!((plan.of("e.{0..3}.w"), plan.along("e.{0..3}.w")), (Some(ROUNDED), None));
        assert_eq!((plan.of("e.{0..4}.w"), plan.of("c.weight")), (None, None));
        assert_eq!(plan.of("b.weight").map(|blocks| blocks.to_string()).as_deref(), Some("int4g32"));
    }

    #[test]
    fn wrong_plans_say_what_exists() {
        let wrong = |text: &str| text.parse::<Plan>().unwrap_err().to_string();
        assert!(wrong("int5").starts_with("'int5' is no format of weights: they are int8, int4"));
        assert!(wrong("int4:g48").starts_with("'int4:g48' is no format"));
        assert!(wrong("int4:64").starts_with("'int4:64' is no format"));
        assert!(wrong("token8").starts_with("'token8' is no format"));
        for text in ["fp8:g0", "fp8:g256", "fp8:e5m2", "e5m2", "fp8e4m3"] {
            assert!(wrong(text).contains("fp8 (E4M3), each with a group of 32, 64 or 128"), "{text}");
        }
        assert!(wrong("").starts_with("'' is no format"));
        assert!(wrong("a..b=int4").starts_with("'a..b=int4' is no pattern"));
    }
}
