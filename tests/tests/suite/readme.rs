//! The first card of the README is a card, and the one a reader would think: with a reference case's weights it computes the case's logits.

use xfc_lang::arch::{ElaborateOptions, elaborate};
use xfc_lang::spec::{Library, parse_card};
use xfc_tests::case::Case;
use xfc_tests::{Result, model, repository};

#[test]
fn the_first_card_is_the_model_it_describes() -> Result<()> {
    let readme = std::fs::read_to_string(repository().join("README.md"))?;
    let card = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let spec = parse_card("README.md", card.ok_or("the README has no card")?, &Library::embedded())?;
    let case = Case::load("llama2")?;
    let options = ElaborateOptions { config: Some(case.config.clone()), ..ElaborateOptions::default() };
    let (ours, theirs) = (elaborate(&spec, &options)?, model::expand(&case)?);
    assert_eq!(ours.arch.parameters, theirs.arch.parameters);
    assert_eq!(ours.bindings, theirs.bindings);
    let programs = [&ours, &theirs].map(|model| model.program.to_string());
    // Below the first line, which holds the card's name.
    let bodies = programs.each_ref().map(|text| text.split_once('\n').map(|(_, body)| body));
    assert_eq!(bodies[0], bodies[1]);
    Ok(())
}
