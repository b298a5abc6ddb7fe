//! The table of codes: one row for each thing that can be wrong with a description.
//!
//! To add one: a row here, and a fixture that it rejects.

macro_rules! codes {
    ($($name:ident $id:literal $title:literal)*) => {
        /// What is wrong. The number is stable; the table is the list of all.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $title] $name,)* }

        impl Code {
            /// All codes in the order of their numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// `E0101`.
            pub fn id(self) -> &'static str {
                match self { $(Code::$name => $id,)* }
            }

            /// What it stands for, in one line.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }
        }
    };
}

codes! {
    // Reading.
    Unreadable "E0001" "A file cannot be read."
    TooLarge "E0002" "A text is larger, deeper or longer than the limits allow."
    YamlSyntax "E0003" "The text is not YAML."
    UnknownModel "E0004" "No card has this name, or serves this model_type."
    // The YAML part of a card.
    UnknownKey "E0101" "A key that the card's format does not have."
    MissingKey "E0102" "A key that every card must have."
    DuplicateKey "E0103" "A key is given twice."
    WrongKind "E0104" "A value of another kind than the key takes."
    // The grammar.
    Syntax "E0110" "The equations do not follow the grammar."
    // Sizes.
    MissingSize "E0120" "The config lacks a key that the card needs."
    WrongSize "E0121" "A size has another type than the card's."
    UnknownSize "E0122" "--set names a size that the card does not have."
    Assumption "E0123" "The config has a value under which this card would compute something else."
    NotShrunk "E0124" "The model cannot be made tiny by itself."
    // Names and modules.
    UnknownName "E0201" "A name that is not defined where it is used."
    DuplicateName "E0202" "A name is bound twice in one scope."
    Reserved "E0203" "A reserved name is bound."
    Cycle "E0204" "A definition needs itself."
    MissingOption "E0205" "A module lacks an option or an input that has no default."
    UnknownOption "E0206" "An option that the module does not have, or one too many."
    RepeatedOption "E0207" "An option is given twice."
    WrongType "E0208" "A value of another type than is needed here."
    SecondName "E0209" "An instance is bound to a second name."
    MixedCall "E0210" "A call takes options or tensors, never both."
    NotCallable "E0211" "Something that is not a module or a function is called."
    NoModel "E0212" "The wiring has no model."
    TooDeep "E0213" "Modules are nested too deeply, or there are too many."
    // Arithmetic on sizes.
    Arithmetic "E0301" "Arithmetic on sizes that has no result."
    Raised "E0302" "The description itself calls this an error."
    // Tensors.
    AxisMismatch "E0401" "Axes of the same name have different sizes, or an axis is missing."
    WidthChanged "E0402" "An instance is applied to another width than at first."
    Misplaced "E0403" "A position, a score or a mask is used outside attention."
    ParameterCount "E0404" "The wiring's numbers (parameters, cache) are others than those of the released model."
    // Checkpoint names.
    NamePattern "E0501" "A pattern or a target of the names is malformed."
    NameTie "E0502" "Two equally long name rules match the same place."
    NameParts "E0503" "The parts of a stored tensor do not fit together."
    NamePath "E0504" "A key of the names is the path of nothing in the card."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise() {
        assert!(Code::ALL.windows(2).all(|w| w[0].id() < w[1].id()));
        assert!(Code::ALL.iter().all(|c| c.title().ends_with('.')));
    }
}
