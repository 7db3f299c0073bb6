//! Enums for what documents and tables hold as text: every word of a list is spelled once.

/// An enum whose variants have names in documents and tables; declared with [`words!`].
pub trait Word: Copy + 'static {
    /// All words of the list. The first one stands for a value that a document leaves out.
    const ALL: &'static [Self];

    /// The text in documents and tables.
    fn name(self) -> &'static str;

    /// The word with this name, if the list has it.
    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|word| word.name() == name)
    }
}

/// Declares an enum together with the text of each variant, so that no list of them can miss one.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $visibility:vis enum $list:ident {
        $($(#[$doc:meta])* $word:ident = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        $visibility enum $list {
            $($(#[$doc])* $word,)+
        }

        impl $crate::base::words::Word for $list {
            const ALL: &'static [Self] = &[$(Self::$word),+];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$word => $name,)+
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    words! {
        enum Colour {
            Red = "red",
            DarkBlue = "dark-blue",
        }
    }

    #[test]
    fn every_word_is_found_by_its_name_and_nothing_else_is() {
        for word in Colour::ALL {
            assert_eq!(Colour::parse(word.name()), Some(*word));
        }
        assert_eq!(Colour::ALL, [Colour::Red, Colour::DarkBlue]);
        assert_eq!(Colour::DarkBlue.name(), "dark-blue");
        assert_eq!(Colour::parse("DarkBlue"), None);
        assert_eq!(Colour::parse(""), None);
    }
}
