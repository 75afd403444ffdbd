//! Between a client's vectors and the slots of ciphertexts, as the plan's placements say.

use cachemir_ir::plan::ClientPlan;
use cachemir_ir::program::{self, Placement};
use num_complex::Complex64;

use crate::Error;

/// The slots of each input for the embeddings of consecutive tokens.
pub fn pack(plan: &ClientPlan, tokens: &[u32]) -> Result<Vec<Vec<f64>>, Error> {
    let embedding = |&token: &u32| {
        plan.model.embedding_of(token)?.ok_or_else(|| {
            let tokens = plan.model.vocabulary;
            Error::Tokenizer(format!("token {token} has no embedding: the model has {tokens} tokens"))
        })
    };
    let embeddings = tokens.iter().map(embedding).collect::<Result<Vec<_>, _>>()?;
    let slots = plan.slots as usize;
    program::pack(&plan.inputs, &plan.embedding, slots, &embeddings).ok_or_else(|| {
        Error::PlanInvalid(format!("the placement puts values of {} tokens beyond the {slots} slots", tokens.len()))
    })
}

/// Takes a vector out of the real parts of the slots of all outputs, one after the other: entry i lies in slot
/// `index_to_slot[i]`.
pub fn unpack(slots: &[Complex64], placement: &Placement) -> Result<Vec<f64>, Error> {
    let entry = |&slot: &u32| {
        let value = slots.get(slot as usize).map(|slot| slot.re);
        value.ok_or_else(|| Error::PlanInvalid(format!("the placement reads slot {slot} of {}", slots.len())))
    };
    placement.index_to_slot.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachemir_ir::manifest::KeyManifest;
    use cachemir_ir::parameters::Parameters;
    use cachemir_ir::plan::{ClientModel, Guard};
    use cachemir_ir::program::EmbeddingForm;

    fn plan(token_stride: u32) -> ClientPlan {
        ClientPlan {
            parameters: Parameters::insecure_test(),
            keys: KeyManifest::default(),
            model: ClientModel {
                name: String::new(),
                tokenizer: None,
                chat: None,
                vocabulary: 2,
                hidden: 2,
                embedding: Some(vec![1.0, 2.0, 3.0, 4.0].into()),
                eos: vec![],
                guard: Guard::of_logits(-1.0, 1.0),
            },
            slots: 8,
            context: 4,
            entries: vec![],
            embedding: Placement { index_to_slot: vec![0, 4], token_stride },
            inputs: vec![EmbeddingForm::scaled(0.5), EmbeddingForm { scale: 2.0, norm_epsilon: Some(12.0) }],
            logits: Placement { index_to_slot: vec![4, 1], token_stride: 0 },
            prefix: vec![],
            prefill_pays: vec![],
            plan_hash: [0; 32],
        }
    }

    #[test]
    fn tokens_interleave_by_their_stride() {
        let plan = plan(1);
        let packed = pack(&plan, &[1, 0, 1]).unwrap();
        assert_eq!(packed[0], [1.5, 0.5, 1.5, 0.0, 2.0, 1.0, 2.0, 0.0]);
        // √(3² + 4² + 2·12) = 7
        assert_eq!(packed[1][0], 6.0 / 7.0);
        assert_eq!(packed[1][6], 8.0 / 7.0);
        let slots: Vec<Complex64> = packed[0].iter().map(|&value| value.into()).collect();
        assert_eq!(unpack(&slots, &plan.logits).unwrap(), [2.0, 0.5]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert_eq!(pack(&plan(4), &[2]).unwrap_err().code(), "CMR-R004");
        assert_eq!(pack(&plan(4), &[0, 1]).unwrap_err().code(), "CMR-R002");
        assert_eq!(unpack(&[Complex64::ZERO; 4], &plan(4).logits).unwrap_err().code(), "CMR-R002");
    }
}
