//! What may be set of a schedule on a CPU: what the generator can do, and what is worth measuring.

use super::isa::Isa;
use super::schedule::{self, BLOCK_PAGES, PAGE_TOKENS, ProductKind, Regime};
use crate::mlir::machine::PairDot;
use crate::mlir::schedule::LinearSchedule;
use crate::plan::kernel::AttentionSpec;
use crate::target::profile::{
    Attention, AttentionFields, Family, Fields, Float, Kept, Product, ProductFields, Profile, ProfileError,
};
use xfc_lang::graph::DType;

/// Most steps that are written out.
const MOST_UNROLLED: u32 = 32;
/// Most bytes that weights are asked for ahead.
const MOST_AHEAD: u64 = 1 << 20;
/// Most rows, or queries, of a tile.
const MOST_ROWS: u64 = 4096;
/// Most pages of a block: more scores than caches hold.
const MOST_PAGES: u32 = 64;
/// Most parts of a product.
const MOST_PARTS: usize = 4;

/// Sets fields of a schedule.
pub(super) fn set(schedule: &mut LinearSchedule, fields: &ProductFields) {
    schedule.micro_rows = fields.micro_rows.unwrap_or(schedule.micro_rows);
    schedule.vectors = fields.vectors.unwrap_or(schedule.vectors);
    schedule.chains = fields.chains.unwrap_or(schedule.chains);
    schedule.unroll = fields.unroll.unwrap_or(schedule.unroll);
    schedule.prefetch = fields.prefetch.unwrap_or(schedule.prefetch);
    schedule.next_panel = fields.next_panel.unwrap_or(schedule.next_panel);
    schedule.rows_per_tile = fields.rows_per_tile.unwrap_or(schedule.rows_per_tile);
}

/// The family of an attention, where something may be set for it.
pub(super) fn family(spec: &AttentionSpec, rows: Regime) -> Option<Attention> {
    let kept = |dtype: DType| match dtype {
        DType::F32 => Some(Kept::F32),
        DType::BF16 => Some(Kept::Bf16),
        DType::Blocks(blocks) if !blocks.form.is_float() => Some(Kept::Int8),
        _ => None,
    };
    let query = match spec.query {
        DType::F32 => Float::F32,
        DType::BF16 => Float::Bf16,
        _ => return None,
    };
    let of_keys = kept(spec.kept).filter(|of_keys| kept(spec.value_kept) == Some(*of_keys))?;
    (rows == Regime::Many).then_some(Attention { query, kept: of_keys, rows })
}

/// Refuses what the generator cannot do.
///
/// # Errors
/// The profile is of another target, or a field of it is out of bounds.
pub(super) fn check(isa: &Isa, profile: &Profile) -> Result<(), ProfileError> {
    if profile.target != isa.name {
        return Err(ProfileError::Elsewhere { found: profile.target.clone(), here: isa.name.clone() });
    }
    for (at, family) in profile.families() {
        let fields = match &family {
            Family::Product(family) => Fields::Product(profile.product(family)),
            Family::Attention(family) => Fields::Attention(profile.attention(family)),
        };
        check_fields(isa, &family, &fields).map_err(|(field, problem)| {
            let at = if family_field(field) { format!("{at}.{field}") } else { format!("{at}.set.{field}") };
            ProfileError::wrong(at, format!("{problem} ({family})"))
        })?;
    }
    Ok(())
}

/// Whether a field says what something is set for.
fn family_field(field: &str) -> bool {
    ["parts", "rows"].contains(&field)
}

/// The field, and what is wrong with it.
type Problem = (&'static str, String);

fn check_fields(isa: &Isa, family: &Family, fields: &Fields) -> Result<(), Problem> {
    match (family, fields) {
        (Family::Product(family), Fields::Product(fields)) => check_product(isa, family, fields),
        (Family::Attention(family), Fields::Attention(fields)) => check_attention(isa, family, fields),
        _ => Ok(()),
    }
}

/// Refuses a number outside of its bounds.
fn within(field: &'static str, value: Option<u64>, least: u64, most: u64) -> Result<(), Problem> {
    match value {
        Some(value) if value < least || value > most => {
            Err((field, format!("is {value}: it must be {least} to {most}")))
        }
        _ => Ok(()),
    }
}

fn check_product(isa: &Isa, family: &Product, fields: &ProductFields) -> Result<(), Problem> {
    within("parts", Some(family.parts as u64), 1, MOST_PARTS as u64)?;
    let in_blocks = family.operand.blocks().is_some();
    let most_micro_rows = u64::from(isa.registers);
    within("micro_rows", fields.micro_rows.map(u64::from), 1, most_micro_rows)?;
    let panel_vectors = (schedule::panel_columns(isa) / u64::from(isa.machine.lanes)) as u32;
    if let Some(vectors) = fields.vectors.filter(|n| *n == 0 || !panel_vectors.is_multiple_of(*n)) {
        let divisors: Vec<String> =
            (1..=panel_vectors).filter(|n| panel_vectors.is_multiple_of(*n)).map(|n| n.to_string()).collect();
        let divisors = divisors.join(", ");
        return Err((
            "vectors",
            format!(
                "is {vectors}: a panel of weights is {panel_vectors} vectors wide, so it must be one of {divisors}"
            ),
        ));
    }
    for (field, given) in [("chains", fields.chains.is_some()), ("unroll", fields.unroll.is_some())] {
        if given && in_blocks {
            return Err((field, "is set: products of weights in groups of integers have none".into()));
        }
    }
    within("unroll", fields.unroll.map(u64::from), 1, MOST_UNROLLED.into())?;
    within("chains", fields.chains.map(u64::from), 1, MOST_UNROLLED.into())?;
    within("prefetch", fields.prefetch, 0, MOST_AHEAD)?;
    within("rows_per_tile", fields.rows_per_tile, 1, MOST_ROWS)?;
    let default = default_of(isa, family);
    let mut schedule = default;
    set(&mut schedule, fields);
    if !schedule.unroll.is_multiple_of(schedule.chains) {
        let problem = format!("is {}: it must divide `unroll`, which is {}", schedule.chains, schedule.unroll);
        return Err(("chains", problem));
    }
    if schedule.rows_per_tile < u64::from(schedule.micro_rows) {
        let problem = format!(
            "is {}: a register tile alone has {} rows (`micro_rows`)",
            schedule.rows_per_tile, schedule.micro_rows
        );
        return Err(("rows_per_tile", problem));
    }
    let needed = registers(family, &schedule);
    // What is chosen by itself is let be, where a register is left in memory now and then.
    if needed > isa.registers.max(registers(family, &default)) {
        let field = if fields.micro_rows.is_some() {
            "micro_rows"
        } else if fields.vectors.is_some() {
            "vectors"
        } else {
            "chains"
        };
        let problem = format!(
            "makes a register tile of {} rows by {} vectors by {} chains, which takes {needed} vector registers: {} has {}",
            schedule.micro_rows, schedule.vectors, schedule.chains, isa.name, isa.registers
        );
        return Err((field, problem));
    }
    Ok(())
}

fn default_of(isa: &Isa, family: &Product) -> LinearSchedule {
    let is_bf16 = family.operand == DType::BF16;
    let kind =
        ProductKind { is_bf16, in_blocks: family.operand.blocks().is_some(), parts: family.parts, of_experts: false };
    schedule::linear(isa, family.rows, kind)
}

/// Vector registers of a register tile: its sums, in blocks also those of a group; a vector of weights for each column; one of inputs.
fn registers(family: &Product, schedule: &LinearSchedule) -> u32 {
    let sums = if family.operand.blocks().is_some() { 2 } else { 1 };
    let columns = schedule.vectors * family.parts as u32;
    schedule.micro_rows * columns * schedule.chains * sums + columns + 1
}

fn check_attention(isa: &Isa, family: &Attention, fields: &AttentionFields) -> Result<(), Problem> {
    if family.rows != Regime::Many {
        let problem = format!("is `{}`: of attention only steps of `many` rows have fields to set", family.rows.name());
        return Err(("rows", problem));
    }
    within("queries", fields.queries.map(u64::from), 1, isa.registers.into())?;
    within("pages", fields.pages.map(u64::from), 1, MOST_PAGES.into())?;
    within("pages_per_tile", fields.pages_per_tile.map(u64::from), 1, MOST_PAGES.into())?;
    within("value_vectors", fields.value_vectors.map(u64::from), 1, isa.registers.into())?;
    within("tile_queries", fields.tile_queries, 1, MOST_ROWS)?;
    let pages = fields.pages.unwrap_or(BLOCK_PAGES);
    let per_tile = fields.pages_per_tile.unwrap_or(1);
    if !pages.is_multiple_of(per_tile) {
        return Err(("pages_per_tile", format!("is {per_tile}: it must divide `pages`, which is {pages}")));
    }
    let (page, halves, key_halves) = halves(isa, family);
    // What was measured of queries alone: those that are chosen by themselves have room.
    let queries = fields.queries.unwrap_or(1);
    let of_scores = per_tile * page * (queries + key_halves) + key_halves;
    if of_scores > isa.registers {
        let field = if fields.pages_per_tile.is_some() { "pages_per_tile" } else { "queries" };
        let problem = format!(
            "makes a register tile of {queries} queries by {per_tile} pages, which takes {of_scores} vector registers: {} has {}",
            isa.name, isa.registers
        );
        return Err((field, problem));
    }
    if let Some(vectors) = fields.value_vectors {
        let needed = (vectors * (queries + halves) + halves).min(queries * vectors + halves * (queries + 2));
        if needed > isa.registers {
            let problem = format!(
                "makes a register tile of {queries} queries by {vectors} vectors, which takes {needed} vector registers: {} has {}",
                isa.name, isa.registers
            );
            return Err(("value_vectors", problem));
        }
    }
    Ok(())
}

/// Vectors of a page of keys, and vectors that one of values and one of keys becomes in registers.
fn halves(isa: &Isa, family: &Attention) -> (u32, u32, u32) {
    let halves = if family.kept == Kept::Bf16 { 2 } else { 1 };
    let whole = isa.machine.pair_dot != PairDot::Widened && family.query == Float::Bf16;
    ((PAGE_TOKENS / u64::from(isa.machine.lanes)) as u32, halves, if whole { 1 } else { halves })
}

/// What may be set beside the best so far: in each stage one kind of thing. Only what [`check`] lets pass.
pub(super) fn candidates(isa: &Isa, family: &Family, stage: usize, best: &Fields) -> Option<Vec<Fields>> {
    let mut found: Vec<Fields> = match (family, best) {
        (Family::Product(family), Fields::Product(best)) => {
            products(isa, family, stage, best)?.into_iter().map(Fields::Product).collect()
        }
        (Family::Attention(family), Fields::Attention(best)) => {
            attentions(isa, family, stage, best)?.into_iter().map(Fields::Attention).collect()
        }
        _ => return None,
    };
    found.retain(|fields| fields != best && check_fields(isa, family, fields).is_ok());
    Some(found)
}

/// Whether products of a family are by registers that hold tiles, where inputs are whole tiles: nothing of those may be set.
fn is_by_tiles(isa: &Isa, family: &Product) -> bool {
    isa.machine.tile_registers.is_some_and(|names| match (family.operand, family.rows) {
        (_, Regime::One) => false,
        (DType::BF16, _) => names.halves.is_some(),
        (_, Regime::Few) => false,
        (operand, Regime::Many) => {
            names.bytes.is_some() && operand.blocks().is_some_and(|blocks| !blocks.form.is_float())
        }
    })
}

fn products(isa: &Isa, family: &Product, stage: usize, best: &ProductFields) -> Option<Vec<ProductFields>> {
    if is_by_tiles(isa, family) {
        return None;
    }
    let default = default_of(isa, family);
    let in_blocks = family.operand.blocks().is_some();
    let mut now = default;
    set(&mut now, best);
    let tile = |micro_rows: u32, vectors: u32, chains: u32| {
        let rows = u64::from(micro_rows);
        ProductFields {
            micro_rows: (micro_rows != default.micro_rows).then_some(micro_rows),
            vectors: (vectors != default.vectors).then_some(vectors),
            chains: (chains != default.chains).then_some(chains),
            // Whole register tiles, about as many rows as before.
            rows_per_tile: (family.rows == Regime::Many && micro_rows != default.micro_rows)
                .then(|| (default.rows_per_tile / rows).max(1) * rows),
            ..*best
        }
    };
    let list: Vec<ProductFields> = match (stage, family.rows) {
        (0, Regime::One) => {
            let chains: &[u32] = if in_blocks { &[1] } else { &[1, 2, 4] };
            let all = [4, 2, 1].into_iter().flat_map(|v| chains.iter().map(move |c| (v, *c)));
            all.map(|(vectors, chains)| tile(1, vectors, chains)).collect()
        }
        (0, Regime::Few) => [(8, 1), (8, 2), (4, 1), (4, 2), (4, 4), (2, 4), (2, 2), (3, 4), (6, 4), (8, 4)]
            .map(|(rows, vectors)| tile(rows, vectors, 1))
            .to_vec(),
        (0, Regime::Many) => {
            let fits = |rows: u32, vectors: u32| {
                registers(family, &LinearSchedule { micro_rows: rows, vectors, chains: 1, ..default }) <= isa.registers
            };
            let most = |vectors: u32| (1..=16).rev().find(|rows| fits(*rows, vectors)).unwrap_or(1);
            let rows = |vectors: u32| {
                let most = most(vectors);
                [most, most.saturating_sub(1).max(1), (most * 2 / 3).max(1)].map(|rows| (rows, vectors))
            };
            [4, 2, 1].into_iter().flat_map(rows).map(|(rows, vectors)| tile(rows, vectors, 1)).collect()
        }
        (1, Regime::One | Regime::Few) => [0, 1024, 2048, 4096, 8192, 16_384]
            .map(|ahead| ProductFields { prefetch: (ahead != default.prefetch).then_some(ahead), ..*best })
            .to_vec(),
        (1, Regime::Many) => [24, 96, 192]
            .map(|rows: u64| {
                let whole = (rows / u64::from(now.micro_rows)).max(1) * u64::from(now.micro_rows);
                ProductFields { rows_per_tile: Some(whole), ..*best }
            })
            .to_vec(),
        (2, Regime::Few | Regime::Many) => {
            vec![ProductFields { next_panel: Some(!default.next_panel), ..*best }]
        }
        (2, Regime::One) => Vec::new(),
        (3, _) if !in_blocks => [2, 8, 16, 1]
            .into_iter()
            .filter(|unroll: &u32| unroll.is_multiple_of(now.chains))
            .map(|unroll| ProductFields { unroll: Some(unroll), ..*best })
            .collect(),
        (3, _) => Vec::new(),
        _ => return None,
    };
    Some(list)
}

fn attentions(isa: &Isa, family: &Attention, stage: usize, best: &AttentionFields) -> Option<Vec<AttentionFields>> {
    let in_halves = family.query == Float::Bf16 && family.kept == Kept::Bf16;
    if family.rows != Regime::Many
        || in_halves && isa.machine.tile_registers.is_some_and(|names| names.halves.is_some())
    {
        return None;
    }
    let queries: &[u32] = if isa.registers >= 32 { &[4, 5, 6, 7, 8, 10, 12, 14] } else { &[2, 3, 4, 6] };
    Some(match stage {
        0 => queries.iter().map(|queries| AttentionFields { queries: Some(*queries), ..*best }).collect(),
        1 => [2, 8, 16].map(|pages| AttentionFields { pages: Some(pages), ..*best }).to_vec(),
        2 => [1, 2, 4].map(|pages| AttentionFields { pages_per_tile: Some(pages), ..*best }).to_vec(),
        3 => [2, 3, 4, 6, 8].map(|vectors| AttentionFields { value_vectors: Some(vectors), ..*best }).to_vec(),
        4 => [32, 96, 128, 192].map(|queries| AttentionFields { tile_queries: Some(queries), ..*best }).to_vec(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::profile::Measured;
    use crate::target::{Target, parse};

    fn text(target: &str, entries: &str) -> String {
        format!(
            "{{\n  \"profile\": 1,\n  \"xfc\": \"xfc 0.1.0\",\n  \"target\": \"{target}\",\n  \"processor\": \"Some\",\n  \"threads\": 2,\n  \
             \"date\": \"2026-01-31T12:00:00Z\",\n{entries}\n}}\n"
        )
    }

    fn product(set: &str) -> String {
        product_of("bf16", "many", set)
    }

    fn product_of(operand: &str, rows: &str, set: &str) -> String {
        format!(
            "  \"products\": [\n    {{\"operand\": \"{operand}\", \"parts\": 1, \"rows\": \"{rows}\", \"set\": {{{set}}}}}\n  ]"
        )
    }

    fn attention(rows: &str, set: &str) -> String {
        format!(
            "  \"attention\": [\n    {{\"query\": \"bf16\", \"kept\": \"bf16\", \"rows\": \"{rows}\", \"set\": {{{set}}}}}\n  ]"
        )
    }

    fn load(target: &str, text: &str) -> Result<Box<dyn Target>, ProfileError> {
        parse(target).unwrap().with_profile(Profile::parse(text)?)
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place() {
        let target = "cpu:x86-64-v4";
        let twice = "{\"operand\": \"f32\", \"parts\": 1, \"rows\": \"one\", \"set\": {}}";
        let cases = [
            "not JSON".to_owned(),
            "[1]".to_owned(),
            text(target, "  \"products\": []").replace("\"profile\": 1", "\"profile\": 2"),
            text("cpu:x86-64-v3", "  \"products\": []"),
            text(target, "  \"product\": []"),
            text(target, &product("\"micro_row\": 6")),
            text(target, &product("\"micro_rows\": \"six\"")),
            text(target, &product("\"micro_rows\": -1")),
            text(target, &product("\"micro_rows\": 0")),
            text(target, &product("\"vectors\": 3")),
            text(target, &product("\"vectors\": 0")),
            text(target, &product("\"micro_rows\": 9, \"vectors\": 4")),
            text(target, &product("\"chains\": 3")),
            text(target, &product("\"chains\": 4")),
            text(target, &product("\"unroll\": 0")),
            text(target, &product("\"unroll\": 1000")),
            text(target, &product("\"prefetch\": 99999999")),
            text(target, &product("\"rows_per_tile\": 0")),
            text(target, &product("\"rows_per_tile\": 2")),
            text(target, &product_of("int8:g32", "one", "\"unroll\": 8")),
            text(target, &product_of("int9", "one", "")),
            text(target, &product_of("f32", "some", "")),
            text(target, &product("").replace("\"parts\": 1", "\"parts\": 0")),
            text(target, &format!("  \"products\": [{twice}, {twice}]")),
            text(target, &attention("one", "")),
            text(target, &attention("many", "\"queries\": 31")),
            text(target, &attention("many", "\"pages\": 0")),
            text(target, &attention("many", "\"pages\": 6, \"pages_per_tile\": 4")),
            text(target, &attention("many", "\"queries\": 12, \"pages_per_tile\": 4")),
            text(target, &attention("many", "\"queries\": 12, \"value_vectors\": 8")),
            text(target, &attention("many", "\"tile_queries\": 0")),
        ];
        let said: Vec<String> = cases
            .iter()
            .map(|text| load(target, text).err().map_or_else(|| format!("taken: {text}"), |e| e.to_string()))
            .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let family = Family::Product(Product { operand: DType::BF16, parts: 2, rows: Regime::Many });
        let fields =
            Fields::Product(ProductFields { vectors: Some(2), next_panel: Some(true), ..ProductFields::default() });
        let other = Family::Attention(Attention { query: Float::Bf16, kept: Kept::Int8, rows: Regime::Many });
        let of_other = Fields::Attention(AttentionFields { queries: Some(8), ..AttentionFields::default() });
        let measured = Measured { unit: "GFLOP/s".into(), default: 100.5, chosen: 110.0 };
        let empty = Profile::parse(&text("cpu:x86-64-v4", "  \"products\": []")).unwrap();
        let profile =
            empty.with(family, of_other, None).with(family, fields, Some(measured)).with(other, of_other, None);
        assert_eq!(Profile::parse(&profile.to_text()).unwrap(), profile);
        assert_eq!((profile.products.len(), profile.attention.len()), (1, 1));
        assert_eq!(family.to_string(), "bf16 x 2, many rows");
        assert_eq!(
            (other.to_string(), fields.to_string()),
            ("attention bf16 over int8, many rows".into(), "vectors 2, next_panel true".into())
        );
        let target = parse("cpu:x86-64-v4").unwrap().with_profile(profile.clone()).unwrap();
        assert_eq!(target.profile(), Some(&profile));
    }

    #[test]
    fn every_candidate_is_one_that_the_generator_can_do() {
        let parts = [1, 2];
        let operands =
            ["f32", "bf16", "int8:g32", "uint4:g128"].map(|name| crate::target::profile::operand::parse(name).unwrap());
        let products = operands.into_iter().flat_map(|operand| {
            parts
                .into_iter()
                .flat_map(move |parts| Regime::ALL.map(|rows| Family::Product(Product { operand, parts, rows })))
        });
        let kept = [Kept::F32, Kept::Bf16, Kept::Int8].into_iter();
        let attentions = kept.flat_map(|kept| {
            [Float::F32, Float::Bf16].map(|query| Family::Attention(Attention { query, kept, rows: Regime::Many }))
        });
        let families: Vec<Family> = products.chain(attentions).collect();
        for name in ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:znver5", "cpu:aarch64", "cpu:neoverse-v1"] {
            let target = parse(name).unwrap();
            let isa = Isa::parse(name).unwrap();
            for family in &families {
                let (mut best, mut stage, mut count) = (family.no_fields(), 0, 0);
                while let Some(found) = target.candidates(family, stage, &best) {
                    for fields in &found {
                        assert_eq!(check_fields(&isa, family, fields), Ok(()), "{name} {family}: {fields}");
                        assert_ne!(*fields, best);
                    }
                    count += found.len();
                    best = found.last().copied().unwrap_or(best);
                    stage += 1;
                }
                assert!((3..40).contains(&count), "{name} {family}: {count}");
            }
        }
    }
}
