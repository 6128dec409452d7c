//! Prices and percentages: what is no number, infinite or below zero is refused where it is read. Nor could JSON say it.

use std::borrow::Cow;

use xso::error::Error;
use xso::{AsXmlText, FromXmlText, TextCodec};

pub struct AtLeastZero;

pub trait Number: AsXmlText + FromXmlText + Copy + Into<f64> {}

impl Number for f32 {}
impl Number for f64 {}

impl<T: Number> TextCodec<T> for AtLeastZero {
    fn decode(&self, text: String) -> Result<T, Error> {
        let number = T::from_xml_text(text)?;
        let value: f64 = number.into();
        let fits = value.is_finite() && value >= 0.0;
        if fits { Ok(number) } else { Err(Error::Other("a price or a percentage must be a number of at least 0")) }
    }

    fn encode<'x>(&self, number: &'x T) -> Result<Option<Cow<'x, str>>, Error> {
        number.as_xml_text().map(Some)
    }
}

impl TextCodec<Option<f64>> for AtLeastZero {
    fn decode(&self, text: String) -> Result<Option<f64>, Error> {
        self.decode(text).map(Some)
    }

    fn encode<'x>(&self, number: &'x Option<f64>) -> Result<Option<Cow<'x, str>>, Error> {
        number.as_ref().map(AsXmlText::as_xml_text).transpose()
    }
}
