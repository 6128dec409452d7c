//! One page of a listing (ListObjectsV2), pure.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::disk::Object;

#[derive(Debug, Default)]
pub struct Page {
    pub objects: Vec<Arc<Object>>,
    pub prefixes: Vec<String>,
    /// Where the next page goes on; none on the last.
    pub next: Option<Token>,
}

/// The last line of a page: as text `k` and the key, or `p` and the common prefix, all of whose keys are passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Key(String),
    Prefix(String),
}

impl Token {
    pub fn parse(text: &str) -> Option<Self> {
        match (text.strip_prefix('k'), text.strip_prefix('p')) {
            (Some(key), _) => Some(Self::Key(key.to_owned())),
            (_, Some(prefix)) => Some(Self::Prefix(prefix.to_owned())),
            _ => None,
        }
    }

    pub fn print(&self) -> String {
        match self {
            Self::Key(key) => format!("k{key}"),
            Self::Prefix(prefix) => format!("p{prefix}"),
        }
    }
}

/// At most `max` lines after `after`: the objects under `prefix`, with what has `delimiter` further on rolled up.
pub fn page(
    objects: &BTreeMap<String, Arc<Object>>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&Token>,
    max: usize,
) -> Page {
    let mut page = Page::default();
    let mut last: Option<Token> = after.cloned();
    let from = match after {
        Some(Token::Key(text) | Token::Prefix(text)) if text.as_str() >= prefix => Bound::Excluded(text.as_str()),
        _ => Bound::Included(prefix),
    };
    for (key, object) in
        objects.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix))
    {
        if matches!(&last, Some(Token::Prefix(rolled)) if key.starts_with(rolled.as_str())) {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == max {
            page.next = last.filter(|_| max > 0);
            return page;
        }
        let rest = key.get(prefix.len()..).unwrap_or_default();
        match delimiter
            .filter(|mark| !mark.is_empty())
            .and_then(|mark| rest.split_once(mark).map(|(head, _)| format!("{prefix}{head}{mark}")))
        {
            Some(rolled) => {
                page.prefixes.push(rolled.clone());
                last = Some(Token::Prefix(rolled));
            }
            None => {
                page.objects.push(object.clone());
                last = Some(Token::Key(key.clone()));
            }
        }
    }
    page
}
