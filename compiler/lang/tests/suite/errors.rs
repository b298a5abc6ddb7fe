//! The page of error codes: every code has a section under its title, its example is refused with it, and what stands as right is accepted.

use std::path::Path;

use xfc_lang::diagnostic::{Code, Report};
use xfc_lang::spec::parse_card;
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, tiny, view};

use crate::language::{blocks, card_of};

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md")).unwrap()
}

/// The sections of the third level: heading and text.
fn sections(page: &str) -> Vec<(String, String)> {
    let parts = page.split("\n### ").skip(1);
    parts.map(|p| p.split_once('\n').unwrap()).map(|(h, t)| (h.to_owned(), t.to_owned())).collect()
}

fn expand(card: &str) -> Result<(), Report> {
    let header = |key: &str| card.lines().find_map(|l| l.strip_prefix("# ")?.strip_prefix(key)).map(str::trim);
    let config = header("config:").map(|json| serde_json::from_str(json).unwrap());
    let sets = header("set:").and_then(|set| set.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string()));
    let options = ElaborateOptions { config, sets: sets.into_iter().collect(), ..ElaborateOptions::default() };
    let spec = parse_card("example.yaml", card, &Library::embedded())?;
    let options = if header("tiny:").is_some() { tiny(&spec, &options)? } else { options };
    elaborate(&spec, &options).map(|_| ())
}

#[test]
fn every_code_has_a_section_and_its_example_is_refused_with_it() {
    let page = page();
    let sections = sections(&page);
    let titles: Vec<String> = Code::ALL.iter().map(|c| format!("{}: {}", c.id(), c.title())).collect();
    let headings: Vec<String> = sections.iter().map(|(h, _)| h.clone()).collect();
    assert_eq!(headings, titles, "docs/errors.md has a section for each row of the table of codes, in its order");
    for (heading, text) in sections {
        let code = &heading[..5];
        let mut wrong: Vec<String> = blocks(&text, "yaml wrong").into_iter().map(|(_, card)| card).collect();
        wrong.extend(blocks(&text, "xf wrong").into_iter().map(|(_, xf)| card_of(&xf)));
        let mut reports: Vec<Option<Report>> = wrong.iter().map(|card| expand(card).err()).collect();
        for (_, command) in blocks(&text, "console wrong") {
            let card = command.trim().strip_prefix("xfc check ").unwrap();
            reports.push(load_card(card, &Library::embedded()).err());
        }
        assert!(!reports.is_empty(), "{code} has no example");
        for report in reports {
            let report = report.unwrap_or_else(|| panic!("the example of {code} is accepted"));
            assert!(report.diagnostics.iter().any(|d| d.code.id() == code), "{code}: {report}");
        }
        let mut right: Vec<String> = blocks(&text, "yaml").into_iter().map(|(_, card)| card).collect();
        right.extend(blocks(&text, "xf").into_iter().map(|(_, xf)| card_of(&xf)));
        for card in right {
            if let Err(report) = expand(&card) {
                panic!("what {code} calls right is refused: {report}\n{card}");
            }
        }
    }
}

#[test]
fn a_page_is_its_section() {
    for code in Code::ALL {
        let page = view::explain(code.id()).unwrap();
        assert!(page.starts_with(&format!("{}: {}\n", code.id(), code.title())), "{page}");
        assert!(page.contains("Refused:") && !page.contains("```"), "{page}");
    }
    let listed = view::codes();
    assert_eq!(listed.lines().count(), Code::ALL.len());
}
