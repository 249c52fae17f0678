//! How a typed view is written down: [`objects!`] makes a struct of a list of fields, the serde names that the API
//! uses, and the OpenAPI shape ([`crate::shape`]) that the server publishes. One list, so that the three agree.
//!
//! A view is for reading, and for building patches. It is never the stored form: the API server keeps the whole
//! object, so that fields no view knows survive. Nothing here validates; see [`crate::rules`].

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// A struct without fields: only its presence says something (`rng: {}`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Whether a field is left out of the JSON. What a view declares without `Option` is required there, and is
/// written always; strings, lists and maps are left out when they are empty.
pub trait Absent {
    /// True if the field is left out.
    fn absent(&self) -> bool {
        false
    }
}
impl<T> Absent for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}
impl<T> Absent for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl<K, V> Absent for BTreeMap<K, V> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl Absent for String {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}
impl Absent for bool {}
impl Absent for i32 {}
impl Absent for i64 {}
impl Absent for u32 {}
impl Absent for Empty {}
impl Absent for Quantity {}
impl Absent for ObjectMeta {}
impl Absent for serde_json::Value {}
impl Absent for k8s_openapi::api::core::v1::TypedLocalObjectReference {}

/// Makes structs of the API. A field is `name: Type`, `name as "jsonName": Type` where camel case is not what the
/// API has, and may end in marks for the schema: `[required]`, `[map "key" ..]`, `[set]`, `[atomic]`, `[min "0"]`,
/// `[max "10"]`, `[one_of "A" "B"]`, `[default "json"]`, `[nullable]`; several are parted by `;`.
macro_rules! objects {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident {
            $( $(#[doc = $fdoc:literal])* $field:ident $(as $json:literal)? : $ty:ty
               $([ $($mark:ident $($arg:literal)*);+ ])? ),* $(,)?
        }
    )*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[allow(missing_docs)] // A field without a sentence has a name that says it.
        pub struct $name {$(
            $(#[doc = $fdoc])*
            #[serde(skip_serializing_if = "crate::object::Absent::absent" $(, rename = $json)?)]
            pub $field: $ty,
        )*}
        impl crate::object::Absent for $name {}
        impl crate::shape::Shape for $name {
            fn shape(defs: &mut crate::shape::Definitions) -> serde_json::Value {
                let path = concat!(module_path!(), "::", stringify!($name));
                defs.define(path, concat!($($doc, "\n"),*), |_s| {$(
                    _s.field::<$ty>(
                        [$($json,)? stringify!($field)][0],
                        concat!($($fdoc, "\n"),*),
                        &[$($((stringify!($mark), &[$($arg),*])),+)?],
                    );
                )*})
            }
        }
    )*};
}
pub(crate) use objects;

/// Makes `Kind` usable with `kube::Api`: its group, version, plural and scope, and where its metadata is.
macro_rules! resource {
    ($name:ident, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($name);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::$scope;
        }
        impl k8s_openapi::Metadata for $name {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
        impl $name {
            /// An object of this kind with a name, in a namespace unless that is empty.
            pub fn new(namespace: &str, name: &str) -> Self {
                let mut object = Self::default();
                object.api_version = <Self as k8s_openapi::Resource>::API_VERSION.into();
                object.kind = <Self as k8s_openapi::Resource>::KIND.into();
                object.metadata.name = Some(name.into());
                object.metadata.namespace = (!namespace.is_empty()).then(|| namespace.into());
                object
            }
        }
    };
}
pub(crate) use resource;
