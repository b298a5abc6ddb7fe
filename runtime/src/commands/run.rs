//! `run`: continues a text, or token ids.

use super::logits::to_safetensors;
use super::profile::Recorded;
use super::{LoadArgs, Output, ProfileArgs, Tokens, counted, inputs, tokens};
use crate::artifact::Artifact;
use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use crate::files::{check_writable, write_atomic};
use crate::generate::{FinishReason, GenerateOptions};
use crate::model::Start;
use crate::session::{DEFAULT_CONTEXT_TOKENS, SessionOptions};
use crate::text::chat::{ChatTemplate, Message};
use crate::text::sampler::{Sampler, SamplerOptions};
use crate::text::settings::{start_ids, stop_ids, suppressed_ids};
use crate::text::tokenizer::{SpecialTokens, Tokenizer};
use serde_json::json;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

/// Tokens to make of a text where the caller does not say.
const DEFAULT_MAX_TOKENS: u64 = 128;

/// Arguments of `run`, besides the model.
#[derive(clap::Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("given").args(["prompt", "tokens"]).required(true)))]
pub struct RunArgs {
    /// Weights, tokenizer, threads.
    #[command(flatten)]
    pub load: LoadArgs,
    /// Text to continue; where the model reads a source, the source
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Token ids to continue, without a tokenizer; end tokens do not end the result then. Where the model reads a source, they are the
    /// source, and NAME=IDS, in a second `--tokens`, is what its text begins with [default: as the checkpoint's config says]
    #[arg(long, value_name = "[NAME=]IDS")]
    pub tokens: Vec<Tokens>,
    /// File of the model's further inputs, such as sound, by name: safetensors or JSON
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS)]
    pub max_tokens: u64,
    /// Most positions, prompt included [default: what is needed, or all that a model with a table of positions has]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<u64>,
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temp: f32,
    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Sample among tokens with at least this part of the largest probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Put the prompt into the checkpoint's chat template, as the user's message
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// Print {"ids": [...], "text": "..."} at the end instead of text as it comes
    #[arg(long)]
    pub json: bool,
    /// Recording.
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Where further outputs of the artifact go; set by a command that has an option for it
    #[arg(skip)]
    pub record: Option<Record>,
}

/// Outputs besides the logits, and the file that takes them.
#[derive(Clone, Debug)]
pub struct Record {
    /// Names of the outputs.
    pub names: Vec<String>,
    /// A safetensors file: a row for each token that was run.
    pub path: PathBuf,
}

/// What is to be continued.
#[derive(Default)]
struct Prompt {
    ids: Vec<u32>,
    /// For a model that writes from a source.
    start_ids: Vec<u32>,
    suppress_ids: Vec<u32>,
    stop_ids: Vec<u32>,
    tokenizer: Option<Tokenizer>,
}

impl RunArgs {
    /// Refuses what would fail whatever the model.
    ///
    /// # Errors
    /// Numbers that make no sense; files that cannot be written.
    pub fn check(&self) -> Result<()> {
        Sampler::new(&self.sampler())?;
        if self.ctx_size == Some(0) {
            return Err(RuntimeError::request("a context of no positions was asked for", "give `-c` at least 1"));
        }
        self.profile.check()?;
        let readable = |path: &PathBuf| File::open(path).map_err(|source| RuntimeError::io(path, "read", source));
        self.inputs.iter().try_for_each(|path| readable(path).map(|_| ()))?;
        self.record.iter().try_for_each(|record| check_writable(&record.path))
    }

    fn sampler(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        }
    }

    fn prompt(&self) -> Result<Prompt> {
        let Some(text) = &self.prompt else {
            return Ok(Prompt::default());
        };
        let tokenizer = self.load.open_tokenizer()?;
        let folder = self.load.folder();
        let mut stop = folder.as_deref().map(stop_ids).transpose()?.unwrap_or_default();
        let encoded = if self.chat {
            let template = folder.as_deref().map(ChatTemplate::open).transpose()?.flatten();
            let template = template
                .ok_or_else(|| RuntimeError::request("the checkpoint has no chat template", "leave `--chat` out"))?;
            stop.extend(template.eos_token().and_then(|token| tokenizer.id_of(token)));
            tokenizer.encode(&template.render(&[Message::new("user", text.as_str())])?, SpecialTokens::AsWritten)?
        } else {
            tokenizer.encode(text, SpecialTokens::Add)?
        };
        let suppress_ids = folder.as_deref().map(suppressed_ids).transpose()?.unwrap_or_default();
        Ok(Prompt { ids: encoded.ids, start_ids: Vec::new(), suppress_ids, stop_ids: stop, tokenizer: Some(tokenizer) })
    }

    /// Adds the ids given on the command line, and what the checkpoint says a text begins with.
    fn add_ids(&self, prompt: &mut Prompt, manifest: &Manifest) -> Result<()> {
        let continued = tokens::prompt_input(manifest);
        for (name, ids) in tokens::by_input(manifest, &self.tokens)? {
            if Some(&name) == continued.as_ref() {
                prompt.ids = ids;
            } else if manifest.token_input().is_some_and(|input| input.name == name) {
                prompt.start_ids = ids;
            } else {
                let problem = format!("input `{name}` is none that a text is continued from");
                return Err(RuntimeError::request(problem, "give all inputs by name with `logits`"));
            }
        }
        if manifest.source_input().is_some() && prompt.start_ids.is_empty() {
            prompt.start_ids = self.load.folder().as_deref().map(start_ids).transpose()?.unwrap_or_default();
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// What loading, stepping and writing can fail with.
pub fn run(artifact: &Artifact, args: &RunArgs, output: &mut Output<'_>) -> Result<()> {
    args.check()?;
    let mut prompt = args.prompt()?;
    let manifest = args.load.choose(artifact)?;
    args.add_ids(&mut prompt, &manifest)?;
    let needed = (prompt.ids.len() + prompt.start_ids.len()) as u64 + args.max_tokens;
    let most = manifest.most_elements(0).unwrap_or(u64::MAX);
    let context_tokens = args.ctx_size.unwrap_or(needed.max(DEFAULT_CONTEXT_TOKENS).min(most));
    let prompt_tokens = prompt.ids.len() as u64;
    let warned = args.load.beyond_training(prompt_tokens)?;
    if let Some(warning) = &warned {
        output.note(format_args!("{warning}\n"))?;
    }
    let options = SessionOptions { context_tokens: Some(context_tokens), ..SessionOptions::default() };
    let loading = Instant::now();
    let model = args.load.load(artifact, &options)?;
    let load_seconds = loading.elapsed().as_secs_f64();
    let mut session = model.session(&options)?;
    let sequence = session.add_sequence()?;
    let further = args.inputs.as_ref().map(|file| inputs::read(file, model.manifest())).transpose()?;
    let options = GenerateOptions {
        max_tokens: Some(args.max_tokens),
        inputs: further.unwrap_or_default(),
        sampler: args.sampler(),
        start_ids: prompt.start_ids,
        suppress_ids: prompt.suppress_ids,
        stop_ids: prompt.stop_ids,
        cancel: None,
        record: args.record.as_ref().map(|record| record.names.clone()).unwrap_or_default(),
    };
    let mut stream = prompt.tokenizer.as_ref().map(Tokenizer::stream);
    let (mut ids, mut text) = (Vec::new(), String::new());
    let recorded = Recorded::begin(&args.profile, &model);
    let started = Instant::now();
    let (mut first_seconds, mut start) = (None, None);
    let mut tokens = session.generate(sequence, &prompt.ids, options)?;
    for token in tokens.by_ref() {
        let token = token?;
        first_seconds.get_or_insert_with(|| started.elapsed().as_secs_f64());
        start.get_or_insert_with(|| Start::of(&model, loading.elapsed().as_secs_f64()));
        let piece = match &mut stream {
            Some(stream) => stream.push(token)?,
            None if ids.is_empty() => token.to_string(),
            None => format!(",{token}"),
        };
        ids.push(token);
        if !args.json {
            output.print(format_args!("{piece}"))?;
        }
        text.push_str(&piece);
    }
    let finish = tokens.finish_reason();
    let beyond = args.load.beyond_training(prompt_tokens + ids.len() as u64)?.filter(|_| warned.is_none());
    if let Some(record) = &args.record {
        write_atomic(&record.path, &to_safetensors(&tokens.recorded().outputs)?)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let with_text = stream.is_some();
    if let Some(stream) = stream {
        let rest = stream.finish()?;
        if !args.json {
            output.print(format_args!("{rest}"))?;
        }
        text.push_str(&rest);
    }

    if args.json {
        let mut result = json!({ "ids": ids, "finish": reason(finish), "prompt_tokens": prompt.ids.len(), "seconds": { "load": load_seconds, "generate": seconds }, "start": start.unwrap_or_else(|| Start::of(&model, 0.0)).to_json() });
        if let (true, Some(result)) = (with_text, result.as_object_mut()) {
            result.insert("text".to_owned(), text.into());
        }
        output.print(format_args!("{result}\n"))?;
        return recorded.map_or(Ok(()), |recorded| recorded.end(output));
    }
    output.print(format_args!("\n"))?;
    if let Some(warning) = beyond {
        output.note(format_args!("{warning}\n"))?;
    }
    if finish == Some(FinishReason::Context) {
        output.note(format_args!(
            "the context of {context_tokens} positions is full, after {} of {}; `-c` asks for a larger one\n",
            ids.len(),
            counted(args.max_tokens, "token")
        ))?;
    }
    if args.max_tokens == 0 {
        output.note(format_args!(
            "prompt: {}, not run, for no token was asked for; weights loaded in {load_seconds:.2} s\n",
            counted(prompt_tokens, "token")
        ))?;
        return recorded.map_or(Ok(()), |recorded| recorded.end(output));
    }
    let first = first_seconds.unwrap_or(seconds);
    if let Some(start) = start.filter(|start| start.counts.kernels > 0) {
        output.note(format_args!("start: {start}\n"))?;
    }
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    // The first token comes of the prompt: of one there is no rate.
    let then = match ids.len() {
        0 | 1 => counted(ids.len() as u64, "token"),
        n => format!("{}, {:.1} a second", counted(n as u64, "token"), rate(n - 1, seconds - first)),
    };
    output.note(format_args!(
        "prompt: {}, {:.1} a second; then {then}; weights loaded in {load_seconds:.2} s\n",
        counted(prompt_tokens, "token"),
        rate(prompt.ids.len(), first),
    ))?;
    recorded.map_or(Ok(()), |recorded| recorded.end(output))
}

fn reason(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::Length) => "length",
        Some(FinishReason::Stop) => "stop",
        Some(FinishReason::Context) => "context",
        Some(FinishReason::Cancelled) => "cancelled",
        Some(FinishReason::Error) | None => "error",
    }
}
