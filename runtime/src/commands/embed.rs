//! `embed`: vectors of texts, and how similar they are.

use super::{LoadArgs, Output, counted};
use crate::artifact::Artifact;
use crate::embed::{EmbedSettings, Normalize, Pooling, cosine};
use crate::error::{Result, RuntimeError};
use crate::session::SessionOptions;
use crate::text::settings::embed_settings;
use crate::text::tokenizer::{Encoded, SpecialTokens};
use serde_json::json;
use std::time::Instant;

/// Characters of a text that the table shows.
const SHOWN: usize = 60;

/// Arguments of `embed`, besides the model.
#[derive(clap::Args, Clone, Debug)]
pub struct EmbedArgs {
    /// Weights, tokenizer, threads.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Texts to embed
    #[arg(short, long = "prompt", value_name = "TEXT", num_args = 1.., required = true)]
    pub prompts: Vec<String>,
    /// How tokens' vectors become one [default: what the checkpoint's modules.json says]
    #[arg(long, value_name = "POOLING")]
    pub pool: Option<Pooling>,
    /// Scale vectors to length 1, also where the checkpoint does not say so
    #[arg(long)]
    pub normalize: bool,
    /// Print {"embeddings": [[...]], "similarities": [[...]]}
    #[arg(long)]
    pub json: bool,
}

impl EmbedArgs {
    /// What the checkpoint says, with the arguments over it.
    fn settings(&self) -> Result<EmbedSettings> {
        let folder = self.load.folder();
        let stated = match (folder.as_deref().map(embed_settings).transpose(), self.pool) {
            (Ok(stated), _) => stated.flatten(),
            // Chosen by hand: what the checkpoint says and we cannot do does not matter.
            (Err(_), Some(_)) => None,
            (Err(error), None) => return Err(error),
        };
        let mut settings = match (stated, self.pool) {
            (Some(stated), _) => stated,
            (None, Some(pooling)) => EmbedSettings { pooling, normalize: false, max_tokens: None },
            (None, None) => {
                return Err(RuntimeError::request(
                    "the checkpoint has no modules.json that says how to pool",
                    "give `--pool mean`, `cls` or `last`",
                ));
            }
        };
        settings.pooling = self.pool.unwrap_or(settings.pooling);
        settings.normalize |= self.normalize;
        Ok(settings)
    }
}

/// Runs the command.
///
/// # Errors
/// What loading, stepping and writing can fail with.
pub fn run(artifact: &Artifact, args: &EmbedArgs, output: &mut Output<'_>) -> Result<()> {
    let settings = args.settings()?;
    let mut tokenizer = args.load.open_tokenizer()?;
    let manifest = args.load.choose(artifact)?;
    let positions = manifest.most_elements(0).and_then(|most| usize::try_from(most).ok());
    if let Some(most) = settings.max_tokens.into_iter().chain(positions).min() {
        tokenizer.truncate_to(most)?;
    }
    let texts =
        args.prompts.iter().map(|text| tokenizer.encode(text, SpecialTokens::Add)).collect::<Result<Vec<Encoded>>>()?;
    let longest = texts.iter().map(|text| text.ids.len() as u64).max().unwrap_or(1).max(1);
    let max_sequences = u32::try_from(texts.len()).unwrap_or(u32::MAX);
    let options = SessionOptions { max_sequences, context_tokens: Some(longest), ..SessionOptions::default() };
    let loading = Instant::now();
    let model = args.load.load(artifact, &options)?;
    let load_seconds = loading.elapsed().as_secs_f64();
    let mut session = model.session(&options)?;
    let started = Instant::now();
    let normalize = if settings.normalize { Normalize::Yes } else { Normalize::No };
    let vectors = session.embed(&texts, settings.pooling, normalize)?;
    let seconds = started.elapsed().as_secs_f64();

    let similarities: Vec<Vec<f32>> = vectors.iter().map(|a| vectors.iter().map(|b| cosine(a, b)).collect()).collect();
    let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
    if args.json {
        let result = json!({
            "embeddings": vectors, "similarities": similarities, "tokens": texts.iter().map(|text| text.ids.len()).collect::<Vec<_>>(),
            "seconds": { "load": load_seconds, "embed": seconds },
        });
        return output.print(format_args!("{result}\n"));
    }
    for (index, (row, text)) in similarities.iter().zip(&args.prompts).enumerate() {
        let row: String = row.iter().map(|similarity| format!("{similarity:8.4}")).collect();
        let shown: String = text.chars().take(SHOWN).collect();
        output.print(format_args!("{:>3}{row}   {shown}\n", index + 1))?;
    }
    output.note(format_args!(
        "{}, {}, {} numbers each: {:.1} ms; weights loaded in {load_seconds:.2} s\n",
        counted(texts.len() as u64, "text"),
        counted(tokens as u64, "token"),
        vectors.first().map_or(0, Vec::len),
        seconds * 1e3,
    ))
}
