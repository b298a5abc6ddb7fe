//! Picks the next token from logits: the largest, or at random among the likely ones.
//!
//! Order, as in Hugging Face transformers: temperature, top-k, top-p, min-p; what remains is drawn in proportion to its probability. Equal seeds
//! give equal tokens.

use crate::error::{Result, RuntimeError};

/// How tokens are picked.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// 0: always the largest logit (the first of equals). Else logits are divided by it.
    pub temperature: f32,
    /// Keep the `k` largest.
    pub top_k: Option<usize>,
    /// Keep the fewest whose probabilities add up to `p`.
    pub top_p: Option<f32>,
    /// Keep those with at least `p` times the largest probability.
    pub min_p: Option<f32>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// The largest logit.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, seed: 0 }
    }
}

/// A sampler with its random state.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
    /// Candidates of the current pick, kept for their memory.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// An option is out of its range.
    pub fn new(options: &SamplerOptions) -> Result<Self> {
        let refuse = |what: &str, value: f32, expected: &str| {
            Err(RuntimeError::request(format!("{what} is {value}"), format!("give a number {expected}")))
        };
        if !options.temperature.is_finite() || options.temperature < 0.0 {
            return refuse("the temperature", options.temperature, "of at least 0");
        }
        if let Some(p) = options.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse("top-p", p, "above 0 and at most 1");
        }
        if let Some(p) = options.min_p.filter(|p| !(*p >= 0.0 && *p <= 1.0)) {
            return refuse("min-p", p, "from 0 to 1");
        }
        if options.top_k == Some(0) {
            return refuse("top-k", 0.0, "of at least 1");
        }
        Ok(Self { options: options.clone(), state: options.seed, candidates: Vec::new() })
    }

    /// Picks a token.
    ///
    /// # Errors
    /// A logit is NaN, or none is finite or larger.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let best = largest(logits)?;
        if self.options.temperature == 0.0 || logits[best as usize] == f32::INFINITY {
            return Ok(best);
        }
        self.keep_likely(logits, best);
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.0)).sum();
        let mut left = self.uniform() * total;
        for &(probability, token) in &self.candidates {
            left -= f64::from(probability);
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave a little; the largest is the best guess at where it belongs.
        Ok(best)
    }

    /// Fills the candidates with `(probability relative to the largest, token)`, most likely first.
    fn keep_likely(&mut self, logits: &[f32], best: u32) {
        let SamplerOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        let most = logits[best as usize];
        self.candidates.clear();
        self.candidates
            .extend(logits.iter().zip(0u32..).map(|(&logit, token)| (((logit - most) / temperature).exp(), token)));
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if let Some(k) = top_k.filter(|&k| k < self.candidates.len()) {
            self.candidates.select_nth_unstable_by(k - 1, order);
            self.candidates.truncate(k);
        }
        self.candidates.retain(|candidate| candidate.0 > 0.0);
        self.candidates.sort_unstable_by(order);
        if let Some(p) = top_p.filter(|&p| p < 1.0) {
            let enough = f64::from(p) * self.candidates.iter().map(|candidate| f64::from(candidate.0)).sum::<f64>();
            let mut sum = 0.0;
            let mut before = |candidate: &(f32, u32)| {
                let short = sum < enough;
                sum += f64::from(candidate.0);
                short
            };
            let kept = self.candidates.iter().take_while(|candidate| before(candidate)).count();
            self.candidates.truncate(kept.max(1));
        }
        if let Some(p) = min_p {
            self.candidates.retain(|candidate| candidate.0 >= p);
        }
    }

    /// The next number in [0, 1), of SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first of the largest logits.
fn largest(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(f32, u32)> = None;
    for (&logit, token) in logits.iter().zip(0u32..) {
        if logit.is_nan() {
            return Err(RuntimeError::NotFinite {
                problem: format!(
                    "the logit of token {token} is not a number: the weights or the model's sizes are wrong"
                ),
            });
        }
        if logit > f32::NEG_INFINITY && best.is_none_or(|(most, _)| logit > most) {
            best = Some((logit, token));
        }
    }
    best.map(|(_, token)| token)
        .ok_or_else(|| RuntimeError::NotFinite { problem: "no token has a finite logit".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(options: SamplerOptions, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(&options).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    fn warm() -> SamplerOptions {
        SamplerOptions { temperature: 1.0, seed: 7, ..SamplerOptions::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(
            Sampler::new(&SamplerOptions::default()).unwrap().sample(&[0.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap(),
            1
        );
        assert_eq!(Sampler::new(&warm()).unwrap().sample(&[0.0, f32::INFINITY]).unwrap(), 1);
    }

    #[test]
    fn draws_in_proportion() {
        // Probabilities 0.5, 0.25, 0.25.
        let logits = [2f32.ln(), 0.0, 0.0];
        let all = counts(warm(), &logits);
        assert!((1850..2150).contains(&all[0]) && (900..1100).contains(&all[1]), "{all:?}");
        assert_eq!(all, counts(warm(), &logits));
        assert_eq!(counts(SamplerOptions { top_k: Some(1), ..warm() }, &logits), [4000, 0, 0]);
        assert_eq!(counts(SamplerOptions { top_k: Some(2), ..warm() }, &logits)[2], 0);
        assert_eq!(counts(SamplerOptions { top_p: Some(0.5), ..warm() }, &logits), [4000, 0, 0]);
        assert_eq!(counts(SamplerOptions { top_p: Some(0.6), ..warm() }, &logits)[2], 0);
        assert_eq!(counts(SamplerOptions { min_p: Some(0.6), ..warm() }, &logits), [4000, 0, 0]);
        let cold = counts(SamplerOptions { temperature: 0.05, ..warm() }, &logits);
        assert_eq!(cold[0], 4000);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let mut sampler = Sampler::new(&warm()).unwrap();
        assert!(sampler.sample(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1"));
        assert!(sampler.sample(&[f32::NEG_INFINITY]).is_err());
        assert!(sampler.sample(&[]).is_err());
        for options in [
            SamplerOptions { temperature: -1.0, ..warm() },
            SamplerOptions { temperature: f32::NAN, ..warm() },
            SamplerOptions { top_k: Some(0), ..warm() },
            SamplerOptions { top_p: Some(0.0), ..warm() },
            SamplerOptions { min_p: Some(1.5), ..warm() },
        ] {
            Sampler::new(&options).unwrap_err();
        }
    }
}
