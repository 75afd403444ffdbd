//! What a model is tried on to learn the ranges of its values.
//!
//! Three kinds of token sequences: text (the user's, or text that the model writes itself), everyday prompts of all kinds
//! that people type and that no story holds, each continued by the model, and tokens of the whole vocabulary in random
//! order. Approximations are accurate on the first two, and as far as their depth allows on the third.

use std::path::Path;

use cachemir_ir::graph::ValueId;
use cachemir_ir::tensor::{Interpreter, PORTION, TensorModel, TensorOp, mean_square};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::import::{ImportedModel, TokenizerFile};
use crate::progress::{Observer, Parts, Pass};

/// Sequences and tokens in each that are sampled from the model where no text is given.
const SAMPLED_SEQUENCES: usize = 12;
const SAMPLED_TOKENS: usize = 64;

/// More of them, and tokens in each: rows as short as theirs are found nowhere else, and are of many kinds.
const OPENINGS: usize = 96;
const OPENING_TOKENS: usize = 8;

/// By which factor the largest mean square of a norm's operand in a sequence exceeds that of half the sequences, where no
/// polynomial covers both.
const MASSIVE: f64 = 512.0;

/// Longest sequence of a user's text; a longer text is cut into several.
const TEXT_TOKENS: usize = 128;

/// Texts that the model continues up to the context, so that long sessions are seen.
const CONTINUATIONS: usize = 6;

/// Tokens that the model adds to an everyday prompt.
const CONTINUED_TOKENS: usize = 12;

/// Lengths of the sequences of tokens in random order.
const RARE_LENGTHS: [usize; 4] = [6, 24, 96, usize::MAX];

/// Tokens in random order: at least so many, once the vocabulary or this if that is more, and no more than this.
const RARE_TOKENS: [usize; 3] = [1000, 3000, 4096];

/// Parameters of models that are tried on all of the text. Of larger ones every tensor has more entries in each step, and
/// fewer steps show as much.
const SMALL: usize = 1 << 22;

/// Tokens that the packed program is run on, at most and at least: it shows what slots hold that do not matter, of which
/// each step has thousands.
const SLOT_TOKENS: [usize; 2] = [512, 24];

/// As many of `most` tokens, but not fewer than `least`, as a model of this size is tried on.
fn share(model: &TensorModel, [most, least]: [usize; 2]) -> usize {
    (most as f64 * SMALL as f64 / model.parameter_count().max(SMALL) as f64).max(least as f64) as usize
}

/// Tokens that the packed program of a model is run on.
pub(crate) fn slot_tokens(model: &TensorModel) -> usize {
    share(model, SLOT_TOKENS)
}

/// Sequences cut to the context, as many tokens as allowed in all beside those of the prefix that they begin with.
pub(crate) fn excerpt(sequences: &[Vec<u32>], prefix: usize, context: usize, tokens: usize) -> Vec<Vec<u32>> {
    let mut taken = Vec::new();
    let mut left = tokens;
    for sequence in sequences {
        // At most half of them from one sequence, for the cores to share.
        let length = sequence.len().min(context).min(prefix + left.min(tokens.div_ceil(2)));
        if length > prefix {
            taken.push(sequence[..length].to_vec());
            left -= length - prefix;
        }
    }
    taken
}

/// Token sequences, each from the beginning of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// Tokens that every sequence begins with; they are public, and nothing is learnt from them.
    pub prefix: Vec<u32>,
    /// Text of the kind that the model was made for.
    pub text: Vec<Vec<u32>>,
    /// Prompts of all kinds, continued by the model.
    pub everyday: Vec<Vec<u32>>,
    /// Tokens in random order.
    pub rare: Vec<Vec<u32>>,
    /// Sequences that are not among these, as states in them are so large (massive activations, arXiv 2402.17762) that no
    /// polynomial covers them with those of the others: of text only those that the model wrote or went on with. The client
    /// refuses such a text, as it sees the arguments of the norms.
    pub left_out: usize,
}

impl Calibration {
    /// What an imported model is tried on, with the text of a file or text that the model writes itself, behind a public
    /// prefix if there is one; everyday prompts are messages to a chat model where that is asked for.
    ///
    /// # Errors
    /// A text that cannot be read or holds nothing, and logits that are no numbers.
    pub fn of(
        imported: &ImportedModel,
        text: Option<&Path>,
        prefix: Vec<u32>,
        chat: bool,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let parts = Parts::begin(observer, Pass::Calibrate, 3);
        let model = &imported.model;
        let beginning = if prefix.is_empty() { beginning(imported)? } else { Beginning::Tokens(prefix.clone()) };
        let mut left_out = 0;
        let given = match text {
            Some(path) => read(imported, path, &prefix)?,
            None => {
                let mut sampled = |sequences: usize, tokens: usize| {
                    let continued = continued(model, &vec![beginning.clone(); sequences], |_| prefix.len() + tokens);
                    Ok::<_, Error>(continued?.ordinary(&mut left_out))
                };
                [sampled(SAMPLED_SEQUENCES, SAMPLED_TOKENS)?, sampled(OPENINGS, OPENING_TOKENS)?].concat()
            }
        };
        parts.one();
        let mut this = Self::of_text(model, given)?;
        parts.one();
        if let Some(tokenizer) = &imported.tokenizer {
            let prompts = if chat {
                tokenizer.conversations(EVERYDAY)?
            } else {
                let (begin, texts) = opened(tokenizer, &prefix, EVERYDAY, &tokenizer.path)?;
                texts.into_iter().map(|text| [begin.clone(), text].concat()).collect()
            };
            let room = model.hyperparameters.context.saturating_sub(CONTINUED_TOKENS).max(1);
            let prompts =
                prompts.into_iter().filter(|tokens| tokens.len() > prefix.len() && tokens.starts_with(&prefix));
            let cut = |mut tokens: Vec<u32>| {
                tokens.truncate(room);
                Beginning::Tokens(tokens)
            };
            let prompts: Vec<Beginning> = prompts.map(cut).collect();
            let continued = continued(model, &prompts, |length| length + CONTINUED_TOKENS)?;
            this.everyday = continued.ordinary(&mut left_out);
        }
        let begun = if let Beginning::Tokens(tokens) = beginning { tokens } else { Vec::new() };
        let rare = shuffled_vocabulary(model, &begun, prefix.is_empty());
        let rare: Vec<Beginning> = rare.into_iter().map(Beginning::Tokens).collect();
        this.rare = continued(model, &rare, |length| length)?.ordinary(&mut left_out);
        this.prefix = prefix;
        this.left_out += left_out;
        parts.one();
        Ok(this)
    }

    /// Text alone, the beginning of it continued by the model up to the context.
    ///
    /// # Errors
    /// Tokens that are not in the vocabulary, and logits that are no numbers.
    pub fn of_text(model: &TensorModel, text: Vec<Vec<u32>>) -> Result<Self, Error> {
        let context = model.hyperparameters.context;
        let mut sequences = text.into_iter().filter(|sequence| !sequence.is_empty());
        let starts: Vec<Beginning> = sequences.by_ref().take(CONTINUATIONS).map(Beginning::Tokens).collect();
        let mut left_out = 0;
        let mut text = continued(model, &starts, |_| context)?.ordinary(&mut left_out);
        text.extend(sequences);
        Ok(Self { text, left_out, ..Self::default() })
    }

    /// What the user is told of sequences that were left out.
    pub(crate) fn note(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            let (left_out, all) = (self.left_out, self.left_out + self.sequences().count());
            format!(
                "{left_out} of {all} sequences that the model was tried on are left out: massive activations, as of tokens that \
                 begin a text, would take polynomials of too wide a range; the client refuses such a text"
            )
        })
    }

    /// All sequences.
    pub fn sequences(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.text.iter().chain(&self.everyday).chain(&self.rare)
    }
}

/// Prompts of the kinds that people type: numbers, prices, dates, code, markup, addresses, lists, capitals, accents, other
/// scripts, symbols, emoji, repetitions, odd spaces, single words and letters.
const EVERYDAY: &[&str] = &[
    "It costs $49.99, or €45 with the 10% discount.",
    "On 12/03/1998 at 07:45 the train left; 3,141 people were on it.",
    "In 1969, two men walked on the moon.",
    "2 + 2 = 4, 7 * 8 = 56, 100 / 3 ≈ 33.3",
    "a = 1; b = 2; c = a + b",
    "0 1 2 3 4 5 6 7 8 9 10 11 12",
    "9876543210",
    "Call +1 (555) 010-4477 now!",
    "import os\nfor name in os.listdir(\".\"):\n    print(name)",
    "fn main() { println!(\"{}\", x[0]); }",
    "if (i < n && a[i] != '\\0') { i++; }",
    "SELECT name, age FROM users WHERE age >= 18;",
    "{\"name\": \"Ann\", \"tags\": [\"x\", \"y\"], \"ok\": true}",
    "<p class=\"big\">Hello, <i>world</i>!</p>",
    "# Title\n\n- first\n- second\n\n> quoted **bold** text\n",
    "https://www.example.org/path?id=42&lang=en#top",
    "Write to jane_doe@example.com.",
    "To whom it may concern:",
    "User: Tell me a joke.\nAssistant:",
    "Who wrote this book, and when?",
    "What's 15% of 80?",
    "1) Wash. 2) Dry. 3) Fold.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "BREAKING NEWS: STOP THE TRAIN",
    "ANNA AND BOB",
    "The Old Man And The Sea",
    "naïve façade, jalapeño, Ångström, über, œuvre",
    "Élodie a mangé une crêpe à l'école.",
    "¿Dónde está el niño? ¡Aquí!",
    "Grüße aus Köln: schöne Tür, heißer Tee.",
    "Olá, você não está só.",
    "Доброе утро, мир!",
    "Καλημέρα κόσμε",
    "你好，世界。",
    "こんにちは、元気ですか？",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Xin chào thế giới",
    "😀",
    "🎉🎂 Happy birthday!! 🎈🎁",
    "I ❤️ you 👍🏽",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷",
    "“Yes,” she said — ‘maybe’… or not?",
    "«Bonjour», dit-il; 5 × 3 ÷ 2 ± 1°",
    "@#$%^&*()_+-=[]{}|;':\",./<>?`~\\",
    "!!!???...",
    "ZZZZZZZZZZZZZZZZ",
    "ha ha ha ha ha ha ha ha",
    "the the the the the the",
    "   two  spaces   here",
    "\tTabbed\tline\r\nand another\r\n",
    "\n\n\n",
    "x",
    "B",
    "An",
    "My",
    "Hi",
    "supercalifragilisticexpialidocious",
    "Mr. Brown's cat isn't here; he'd've known.",
    "Sam (aged 9) was six feet tall.",
    "Once there was a king.",
];

/// The texts of a file, one a line.
fn read(imported: &ImportedModel, path: &Path, public: &[u32]) -> Result<Vec<Vec<u32>>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let Some(tokenizer) = &imported.tokenizer else {
        let message = "the model has no tokenizer to read it with".to_owned();
        return Err(Error::BadOption { option: "--calibrate", message });
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let longest = imported.model.hyperparameters.context.min(TEXT_TOKENS);
    let (prefix, texts) = opened(tokenizer, public, &lines, path)?;
    let mut sequences = Vec::new();
    for text in texts {
        // The parts of a long text begin as any text does.
        for part in text.chunks(longest.saturating_sub(prefix.len()).max(1)) {
            sequences.push(prefix.iter().chain(part).copied().collect());
        }
    }
    if sequences.is_empty() {
        return Err(Error::BadCompanion { path: path.to_owned(), message: "there is no text in it".to_owned() });
    }
    Ok(sequences)
}

/// What a text begins with, a public prefix or else the special tokens that the tokenizer puts first; and the texts without
/// the latter.
fn opened(
    tokenizer: &TokenizerFile,
    public: &[u32],
    texts: &[&str],
    source: &Path,
) -> Result<(Vec<u32>, Vec<Vec<u32>>), Error> {
    let special = tokenizer.prefix()?;
    let mut texts = tokenizer.encode(texts, source)?;
    for text in texts.iter_mut().filter(|text| text.starts_with(&special)) {
        text.drain(..special.len());
    }
    Ok((if public.is_empty() { special } else { public.to_vec() }, texts))
}

/// How a text begins.
#[derive(Clone)]
enum Beginning {
    /// With these tokens.
    Tokens(Vec<u32>),
    /// With any token that is likely after this one, which stands between texts.
    After(u32),
}

/// What the tokenizer puts in front of a text. Without that, a text begins with what follows the end of another.
fn beginning(imported: &ImportedModel) -> Result<Beginning, Error> {
    let prefix = imported.tokenizer.as_ref().map(TokenizerFile::prefix).transpose()?.unwrap_or_default();
    if !prefix.is_empty() {
        return Ok(Beginning::Tokens(prefix));
    }
    let separator = imported.eos_tokens.first().copied().or(imported.bos_token);
    Ok(Beginning::After(separator.unwrap_or(0)))
}

/// Sequences, and how large states get in them.
struct Continued {
    sequences: Vec<Vec<u32>>,
    /// By sequence and norm: the largest mean square behind what all sequences begin with.
    most: Vec<Vec<f64>>,
}

impl Continued {
    /// The sequences without those in which states are far larger than in others, which are counted.
    fn ordinary(self, left_out: &mut usize) -> Vec<Vec<u32>> {
        let norms = self.most.first().map_or(0, Vec::len);
        let bound = |norm: usize| {
            let mut most: Vec<f64> = self.most.iter().map(|norms| norms[norm]).collect();
            let middle = most.len() / 2;
            MASSIVE * *most.select_nth_unstable_by(middle, f64::total_cmp).1
        };
        let bounds: Vec<f64> = (0..norms).map(bound).collect();
        let ordinary = |most: &Vec<f64>| most.iter().zip(&bounds).all(|(most, bound)| most <= bound);
        let count = self.sequences.len();
        let kept = self.sequences.into_iter().zip(&self.most).filter(|(_, most)| ordinary(most));
        let kept: Vec<Vec<u32>> = kept.map(|(sequence, _)| sequence).collect();
        *left_out += count - kept.len();
        kept
    }
}

/// Sequences that the model writes itself, from their beginning to a length that may depend on the beginning's, at most the
/// context; drawn from its distribution at temperature 1 by a fixed generator, so that the same model gives the same text.
fn continued(
    model: &TensorModel,
    beginnings: &[Beginning],
    length: impl Fn(usize) -> usize,
) -> Result<Continued, Error> {
    let context = model.hyperparameters.context;
    let mut random: Vec<ChaCha8Rng> =
        (0..beginnings.len()).map(|index| ChaCha8Rng::seed_from_u64(index as u64)).collect();
    let mut sequences = Vec::new();
    for (beginning, random) in beginnings.iter().zip(&mut random) {
        let mut tokens = match beginning {
            Beginning::Tokens(tokens) => tokens.clone(),
            Beginning::After(token) => vec![draw(&Interpreter::new(model)?.step(*token)?, random)?],
        };
        tokens.truncate(context);
        sequences.push(tokens);
    }
    let lengths: Vec<usize> =
        sequences.iter().map(|tokens| length(tokens.len()).clamp(tokens.len(), context)).collect();
    // What all of them begin with is taken in once; the last token of each is to be fed.
    let alike = |tokens: &Vec<u32>| tokens.iter().zip(&sequences[0]).take_while(|(a, b)| a == b).count();
    let alike = sequences.iter().map(alike).min().unwrap_or(0);
    let common = sequences.iter().map(|tokens| tokens.len() - 1).min().unwrap_or(0).min(alike);
    let mut begun = Interpreter::new(model)?;
    begun.feed(sequences.first().map_or(&[], |first| &first[..common]))?;
    let mut interpreter = begun.fork(beginnings.len());
    let mut taken = vec![common; beginnings.len()];
    let norms = model.ops().filter(|(_, node)| matches!(node.op, TensorOp::RmsNorm { .. }));
    let norms: Vec<ValueId> = norms.map(|(_, node)| node.inputs[0]).collect();
    let mut most = vec![vec![0.0f64; norms.len()]; beginnings.len()];
    loop {
        // As many sessions as have tokens to be taken in, up to a portion; long beginnings go in by parts.
        let mut parts: Vec<(usize, std::ops::Range<usize>)> = Vec::new();
        let mut room = PORTION;
        for (session, tokens) in sequences.iter().enumerate() {
            if taken[session] < tokens.len() && room > 0 {
                let end = tokens.len().min(taken[session] + room);
                room -= end - taken[session];
                parts.push((session, taken[session]..end));
            }
        }
        if parts.is_empty() {
            return Ok(Continued { sequences, most });
        }
        let fed: Vec<(usize, &[u32])> =
            parts.iter().map(|(session, range)| (*session, &sequences[*session][range.clone()])).collect();
        interpreter.feed_each(&fed)?;
        for (index, &norm) in norms.iter().enumerate() {
            let fed = interpreter.fed(norm).iter().zip(interpreter.places());
            for (x, &(session, _)) in fed.filter(|(_, (_, position))| *position >= alike) {
                most[session][index] = most[session][index].max(mean_square(x));
            }
        }
        let logits = interpreter.fed(model.graph.body.yields[0]);
        for ((session, range), logits) in parts.into_iter().zip(logits) {
            taken[session] = range.end;
            if range.end == sequences[session].len() && range.end < lengths[session] {
                sequences[session].push(draw(logits, &mut random[session])?);
            }
        }
    }
}

/// A token drawn from the distribution with these logits.
fn draw(logits: &[f64], random: &mut ChaCha8Rng) -> Result<u32, Error> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = logits.iter().map(|logit| (logit - most).exp());
    let next = WeightedIndex::new(weights).map_err(|error| Error::NotLlama {
        node: "lm_head".to_owned(),
        op_type: "MatMul".to_owned(),
        message: format!("its logits are no distribution: {error}"),
    })?;
    Ok(next.sample(random) as u32)
}

/// Sequences of different lengths of all tokens of the vocabulary, or of as many as allowed, in a fixed random order; every
/// other one begins as a text does, or all of them.
fn shuffled_vocabulary(model: &TensorModel, prefix: &[u32], only_every_other: bool) -> Vec<Vec<u32>> {
    let shape = &model.hyperparameters;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let wanted = share(model, [shape.vocabulary.clamp(RARE_TOKENS[1], RARE_TOKENS[2]), RARE_TOKENS[0]]);
    let mut tokens: Vec<u32> = Vec::new();
    while tokens.len() < wanted {
        let mut vocabulary: Vec<u32> = (0..shape.vocabulary as u32).collect();
        vocabulary.shuffle(&mut random);
        tokens.extend(vocabulary);
    }
    tokens.truncate(wanted);
    let (mut sequences, mut rest) = (Vec::new(), tokens.as_slice());
    for (index, &length) in RARE_LENGTHS.iter().cycle().enumerate() {
        if rest.is_empty() {
            break;
        }
        let begins = !only_every_other || (index / RARE_LENGTHS.len()).is_multiple_of(2);
        let begin = if begins { prefix } else { &[] };
        let room = length.min(shape.context).saturating_sub(begin.len()).max(1);
        let (part, after) = rest.split_at(room.min(rest.len()));
        sequences.push(begin.iter().chain(part).copied().take(shape.context).collect());
        rest = after;
    }
    sequences
}

#[cfg(test)]
mod tests {
    use super::Continued;

    #[test]
    fn sequences_with_massive_activations_are_left_out() {
        let continued = |most: [[f64; 2]; 4]| {
            let sequences = (0..4).map(|token| vec![token]).collect();
            let mut left_out = 0;
            let kept = Continued { sequences, most: most.map(Vec::from).into() }.ordinary(&mut left_out);
            (kept.concat(), left_out)
        };
        assert_eq!(continued([[1.0, 2.0], [3.0, 900.0], [2.0, 2.0], [1.0, 1e6]]), (vec![0, 1, 2], 1));
        // What half of all do is what the model does.
        assert_eq!(continued([[1e6, 2.0], [1e6, 2.0], [1e6, 2.0], [1.0, 3.0]]), (vec![0, 1, 2, 3], 0));
    }
}
