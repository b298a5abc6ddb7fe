//! Every reference case loads, agrees with itself, and is written out as the checkpoint it describes.

use std::collections::BTreeSet;
use std::fs;

use safetensors::SafeTensors;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};

#[test]
fn every_case_agrees_with_itself() -> Result<()> {
    let names = Case::names()?;
    assert_eq!(names.len(), 54, "{names:?}");
    for name in names {
        let case = Case::load(&name)?;
        // One row a token, or one an image.
        let outputs = case.outputs()?;
        let Some(logits) = outputs.get("logits").map(|logits| &logits.shape) else {
            // Of a model that gives vectors and no logits, each is of the model's width.
            for (output, golden) in &outputs {
                assert_eq!(
                    golden.shape.last().map(|n| *n as u64),
                    case.config["hidden_size"].as_u64(),
                    "{name} {output}"
                );
            }
            continue;
        };
        let classes = case.config["vocab_size"].as_u64().map(usize::try_from).transpose()?;
        let labels = case.config["id2label"].as_object().map(serde_json::Map::len);
        let wanted = match classes.filter(|_| case.prompt().is_ok()) {
            Some(n) => vec![case.prompt()?.len(), n],
            None => labels.into_iter().collect(),
        };
        assert_eq!(*logits, wanted, "{name}");
        if case.greedy_steps > 0 {
            assert_eq!(case.greedy_ids()?.len(), case.greedy_steps, "{name}");
            assert_eq!(case.golden("greedy.logits")?.shape, [case.greedy_steps, wanted[1]], "{name}");
        }
        let stored: BTreeSet<_> = case.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(stored.len(), case.tensors.len(), "{name}: a tensor is listed twice");
        for (alias, shared) in &case.tied {
            assert!(stored.contains(shared.as_str()), "{name}: {alias} is tied to {shared}, which is not stored");
        }
    }
    Ok(())
}

#[test]
fn shards_hold_the_tensors_of_the_single_file() -> Result<()> {
    let case = Case::load("mistral")?;
    let (single, sharded) = (case.checkpoint(Layout::Single)?, case.checkpoint(Layout::Sharded(4))?);
    let single = fs::read(single.path().join("model.safetensors"))?;
    let single = SafeTensors::deserialize(&single)?;
    assert_eq!(single.len(), case.tensors.len());

    let index = fs::read(sharded.path().join("model.safetensors.index.json"))?;
    let index: serde_json::Value = serde_json::from_slice(&index)?;
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), case.tensors.len());
    let files: BTreeSet<_> = map.values().map(|f| f.as_str().unwrap()).collect();
    assert_eq!(files.len(), 4);
    for tensor in &case.tensors {
        let shard = fs::read(sharded.path().join(map[&tensor.name].as_str().unwrap()))?;
        let shard = SafeTensors::deserialize(&shard)?;
        let (a, b) = (single.tensor(&tensor.name)?, shard.tensor(&tensor.name)?);
        assert_eq!((a.shape(), a.data()), (b.shape(), b.data()), "{}", tensor.name);
        assert_eq!(a.shape(), tensor.shape, "{}", tensor.name);
    }
    Ok(())
}
