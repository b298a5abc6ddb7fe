//! `xfc compare`: models side by side, as a table or with their block diagrams.

use xfc_lang::view::{self, Survey};

use crate::args::{CompareArgs, CompareFormat, DTypeArg, ModelArgs};
use crate::error::Result;
use crate::output::print;
use crate::see;

/// Runs the subcommand.
///
/// # Errors
/// A model cannot be read, or the output cannot be written.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let surveys = args.names.iter().map(|name| survey(name, args)).collect::<Result<Vec<_>>>()?;
    let text = match args.format {
        CompareFormat::Text => view::survey_text(&surveys, &args.ctx_size),
        CompareFormat::Json => format!("{:#}", view::survey_json(&surveys, &args.ctx_size)),
        CompareFormat::Svg => view::survey_svg(&surveys, &args.ctx_size),
        CompareFormat::Html => view::survey_html(&surveys, &args.ctx_size),
    };
    match &args.output {
        Some(path) => xfc_runtime::files::write_atomic(path, text.as_bytes())?,
        None => print(text.trim_end().to_owned()),
    }
    Ok(())
}

fn survey(name: &str, args: &CompareArgs) -> Result<Survey> {
    let model = ModelArgs {
        model: name.to_owned(),
        config: None,
        set: args.changes.set.clone(),
        tiny: args.changes.tiny,
        target: Vec::new(),
        dtype: DTypeArg::F32,
        kv_cache_dtype: None,
        quant: None,
        calibration: None,
        models: args.models.clone(),
        gguf: None,
        tuned: None,
        skip_pass: Vec::new(),
    };
    let loaded = see::load(name, &model)?;
    let program = view::recognised(&loaded.model.program);
    Ok(view::survey(&program, &loaded.model.arch, name, loaded.is_published))
}
