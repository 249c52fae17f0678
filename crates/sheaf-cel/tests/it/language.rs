//! Grammar, types, operators, macros.

use super::check;

#[test]
fn literals() {
    check(&[
        ("1", "1"),
        ("-1", "-1"),
        ("0x1F", "31"),
        ("-0x1f", "-31"),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775808", "? Syntax error: invalid int literal"),
        ("18446744073709551615u", "18446744073709551615"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("1.0", "1"),
        ("1e21", "1e+21"),
        ("0.00001", "1e-05"),
        ("true", "true"),
        ("null", "null"),
        ("'a'", "a"),
        (r#""a'b""#, "a'b"),
        (r"'\n\t\\\''", "\n\t\\'"),
        (r"'\x41\u00e9\U0001F600\101'", "A\u{e9}\u{1F600}A"),
        (r"r'\d+'", r"\d+"),
        (r"R'''a\'b'''", r"a\'b"),
        ("'''a\nb'''", "a\nb"),
        ("'a\nb'", "? Syntax error: token recognition error at: ''a'"),
        (r"'\q'", "? Syntax error: invalid escape sequence"),
        (r"size(b'\xff\377é')", "4"),
        ("[1, 2,]", "[1, 2]"),
        ("{'b': [1], 'a': [2]}", r#"{"a": [2], "b": [1]}"#),
        ("{'a': 1, 'a': 2}", "! Failed with repeated key: a"),
        ("{1.5: 2}", "? unsupported map key type: double"),
        ("[1, 'a']", "? expected type 'int' but found 'string'"),
        ("[1, dyn('a')]", r#"[1, "a"]"#),
        ("[]", "[]"),
        ("1 // what follows is a comment\n + 1", "2"),
    ]);
}

#[test]
fn syntax_errors() {
    check(&[
        (
            "1 +",
            "? Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
        ),
        ("(1", "? Syntax error: mismatched input '<EOF>' expecting ')'"),
        ("1 2", "? Syntax error: mismatched input '2' expecting <EOF>"),
        ("a.", "? Syntax error: mismatched input '<EOF>' expecting IDENTIFIER"),
        ("for", "? Syntax error: reserved identifier: for"),
        ("#", "? Syntax error: token recognition error at: '#'"),
        ("has(self)", "? invalid argument to has() macro"),
        ("[1].all(1, true)", "? argument must be a simple name"),
        ("Foo{}", "? undeclared reference to 'Foo' (in container '')"),
    ]);
}

#[test]
fn where_a_mistake_is() {
    let error = super::env().compile("1 +\n  nope").unwrap_err();
    assert_eq!(
        error.to_string(),
        "ERROR: <input>:2:3: undeclared reference to 'nope' (in container '')\n |   nope\n | ..^"
    );
}

#[test]
fn arithmetic() {
    check(&[
        ("1 + 2 * 3 - 4 / 2 % 3", "5"),
        ("7 / 2", "3"),
        ("-7 / 2", "-3"),
        ("-7 % 3", "-1"),
        ("7.0 / 2.0", "3.5"),
        ("1 / 0", "! division by zero"),
        ("1 % 0", "! modulus by zero"),
        ("1.0 / 0.0", "+Inf"),
        ("9223372036854775807 + 1", "! integer overflow"),
        ("-9223372036854775808 - 1", "! integer overflow"),
        ("9223372036854775807 * 2", "! integer overflow"),
        ("-(-9223372036854775808)", "! integer overflow"),
        ("-9223372036854775808 / -1", "! integer overflow"),
        ("0u - 1u", "! unsigned integer overflow"),
        ("1 + 1.0", "? found no matching overload for '_+_' applied to '(int, double)'"),
        ("'a' + 'b'", "ab"),
        ("[1] + [2]", "[1, 2]"),
        ("string(b'a' + b'b')", "ab"),
        ("'a' - 'b'", "? found no matching overload for '_-_' applied to '(string, string)'"),
        ("--1", "1"),
        ("!!true", "true"),
        ("- 5", "-5"),
        ("1 - -1", "2"),
    ]);
}

#[test]
fn comparison() {
    check(&[
        ("1 < 2", "true"),
        ("1 < 1.5", "true"),
        ("1u < -1", "false"),
        ("9007199254740993 > 9007199254740992.0", "true"),
        ("18446744073709551615u > 9223372036854775807", "true"),
        ("1 == 1.0", "? found no matching overload for '_==_' applied to '(int, double)'"),
        ("dyn(1) == 1.0", "true"),
        ("dyn(1) == 1u", "true"),
        ("dyn(1) == '1'", "false"),
        ("dyn(1) < '1'", "! no such overload"),
        ("'a' < 'b'", "true"),
        ("false < true", "true"),
        ("b'a' < b'b'", "true"),
        ("[1, 2] == [1, 2]", "true"),
        ("[1, 2] == [2, 1]", "false"),
        ("{'a': 1} == {'a': 1}", "true"),
        ("{'a': 1} == {'b': 1}", "false"),
        ("null == null", "true"),
        ("1 == null", "? found no matching overload for '_==_' applied to '(int, null)'"),
        ("dyn(1) != null", "true"),
        ("0.0/0.0 == 0.0/0.0", "false"),
        ("0.0/0.0 < 1.0", "false"),
        ("[1] < [2]", "? found no matching overload for '_<_' applied to '(list(int), list(int))'"),
        ("2 in [1, 2]", "true"),
        ("'x' in [1, 2]", "? found no matching overload for '@in' applied to '(string, list(int))'"),
        ("dyn('x') in [1, 2]", "false"),
        ("'a' in {'a': 1}", "true"),
        ("object.n in [7.0]", "true"),
        ("type(1) == int && type('') == string && type([]) == list && type({}) == map", "true"),
        ("type(type(1)) == type", "true"),
        ("type(null) == null_type", "true"),
        ("type(duration('1s')) == google.protobuf.Duration", "true"),
    ]);
}

#[test]
fn logic_absorbs_errors() {
    check(&[
        ("true || 1/0 > 0", "true"),
        ("1/0 > 0 || true", "true"),
        ("1/0 > 0 || false", "! division by zero"),
        ("false && 1/0 > 0", "false"),
        ("1/0 > 0 && false", "false"),
        ("1/0 > 0 && true", "! division by zero"),
        ("object.n || true", "true"),
        ("object.n || false", "! no such overload"),
        ("true ? 1 : 2", "1"),
        ("false ? 1/0 : 2", "2"),
        ("1/0 > 0 ? 1 : 2", "! division by zero"),
        ("true ? 1 : 'a'", "? found no matching overload for '_?_:_' applied to '(bool, int, string)'"),
        ("1 && true", "? expected type 'bool' but found 'int'"),
        ("true ? false : true ? 1 == 1 : false", "false"),
    ]);
}

#[test]
fn fields_and_indexes() {
    check(&[
        ("object.a.b[1]", "2.5"),
        ("object.a['b'][0]", "1"),
        ("object.a.x", "! no such key: x"),
        ("object['zz']", "! no such key: zz"),
        ("object.a.b[9]", "! index out of bounds: 9"),
        ("object.a.b[-1]", "! index out of bounds: -1"),
        ("object.a.b[1.0]", "2.5"),
        ("has(object.a.b) && !has(object.a.c)", "true"),
        ("has(object.x.y)", "! no such key: x"),
        ("self.nope", "? undefined field 'nope'"),
        ("has(self.nope)", "? undefined field 'nope'"),
        ("has(self.missing)", "false"),
        ("self.missing", "! no such key: missing"),
        ("self.text.x", "? type 'string' does not support field selection"),
        ("self.list['a']", "? found no matching overload for '_[_]' applied to '(list(int), string)'"),
        ("self.labels.a + self.labels['b']", "12"),
        ("self.nothing == null", "true"),
        ("has(self.nothing)", "true"),
        ("{1: 'a', 2u: 'b', true: 'c'}[dyn(2.0)]", "? expected type 'int' but found 'uint'"),
        ("{1: 'a'}[dyn(1u)]", "a"),
    ]);
}

#[test]
fn declared_values() {
    check(&[
        ("self.ratio", "2"),
        ("self.ratio / 4.0", "0.5"),
        ("self.when > timestamp('2026-01-01T00:00:00Z')", "true"),
        ("self.day == timestamp('2026-01-02T00:00:00Z')", "true"),
        ("self.wait == duration('90m')", "true"),
        ("self.raw == b'hi'", "true"),
        ("type(self.port) == string && self.port.endsWith('%')", "true"),
        ("type(self.port) == int ? self.port > 5 : true", "true"),
        ("self.port + 1", "! no such overload"),
        ("self.set == self.other", "true"),
        ("self.set + ['b', 'c']", r#"["a", "b", "c"]"#),
        ("self.keyed == self.keyed2", "true"),
        ("(self.keyed + self.keyed2).size()", "2"),
        ("self.keyed.filter(i, i.v > 1)[0].k", "y"),
        ("self.open[0] == self.open[1]", "false"),
        ("self.open[0] == self.open[2]", "true"),
        ("self.open[0] in [self.open[1]]", "false"),
    ]);
}

#[test]
fn macros() {
    check(&[
        ("[1, 2].all(x, x > 0)", "true"),
        ("[].all(x, x > 0)", "true"),
        ("[1, 2].all(x, x > 1)", "false"),
        ("[0, 2].all(x, 4 / x > 3)", "false"),
        ("[2, 0].all(x, 4 / x > 1)", "! division by zero"),
        ("[1, 2].exists(x, x > 1)", "true"),
        ("[0, 2].exists(x, 4 / x == 2)", "true"),
        ("[1, 2, 2].exists_one(x, x == 2)", "false"),
        ("[1, 2].exists_one(x, x == 2)", "true"),
        ("[1, 2].map(x, x * 2)", "[2, 4]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4, 6]"),
        ("[1, 2, 3].filter(x, x % 2 == 1)", "[1, 3]"),
        ("{'a': 1, 'b': 2}.map(k, k)", r#"["a", "b"]"#),
        ("{'a': 1}.all(k, v, k == 'a' && v == 1)", "true"),
        ("[5, 6].all(i, v, v == i + 5)", "true"),
        ("[5, 6].exists(i, v, i == 1 && v == 6)", "true"),
        ("[5, 6].existsOne(i, v, v > 5)", "true"),
        ("[5, 6].transformList(i, v, i * v)", "[0, 6]"),
        ("[5, 6].transformList(i, v, i > 0, i * v)", "[6]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v * 10)", r#"{"a": 10, "b": 20}"#),
        ("{'a': 1, 'b': 2}.transformMap(k, v, k == 'b', v * 10)", r#"{"b": 20}"#),
        ("['x', 'y'].transformMapEntry(i, v, {v: i})", r#"{"x": 0, "y": 1}"#),
        ("['x', 'x'].transformMapEntry(i, v, {v: i})", "! Failed with repeated key: x"),
        ("[1].all(x, [x].all(x, x == 1))", "true"),
        ("[[1, 2], [3]].map(l, l.map(x, x + 1))", "[[2, 3], [4]]"),
        ("[1].all(x, x)", "? expected type 'bool' but found 'int'"),
        (
            "5.all(x, true)",
            "? expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("cel.bind(x, 2, x * x)", "4"),
        ("cel.bind(x, 2, cel.bind(y, x + 1, x * y))", "6"),
        ("cel.bind(x, 1 / 0, true)", "true"),
        ("cel.bind(x, 1 / 0, x > 0 || true)", "true"),
        ("cel.bind(x, 1 / 0, x > 0)", "! division by zero"),
        ("[1, 2].all(x, x, true)", "? duplicate variable name"),
    ]);
}

#[test]
fn optionals() {
    check(&[
        ("object.?a.b.hasValue()", "true"),
        ("object.?zz.b.c.hasValue()", "false"),
        ("object.?zz.orValue('d')", "d"),
        ("object.?a.?zz.or(optional.of(3)).value()", "3"),
        ("object.?zz.value()", "! optional.none() dereference"),
        ("[1, 2][?1].value()", "2"),
        ("[1, 2][?5].hasValue()", "false"),
        ("{'a': 1}[?'b'].orValue(9)", "9"),
        ("optional.of(1).optMap(x, x + 1).value()", "2"),
        ("optional.none().optMap(x, x + 1).hasValue()", "false"),
        ("optional.of(1).optFlatMap(x, optional.none()).hasValue()", "false"),
        ("optional.ofNonZeroValue('').hasValue()", "false"),
        ("optional.ofNonZeroValue('a').value()", "a"),
        ("[?optional.of(1), ?optional.none()]", "[1]"),
        ("{?'a': optional.of(1), ?'b': optional.none()}", r#"{"a": 1}"#),
        ("self.?missing.orValue('none')", "none"),
        ("self.?text.orValue('none')", "hello"),
        ("self.?nope.hasValue()", "? undefined field 'nope'"),
        ("optional.of(1) == optional.of(1)", "true"),
        ("optional.of(1) == optional.none()", "false"),
        ("optional.none() == optional.none()", "true"),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("int('42') + int(3.9) + int(5u)", "50"),
        ("int('x')", "! type conversion error from 'string' to 'int'"),
        ("int(1e19)", "! integer overflow"),
        ("uint(-1)", "! unsigned integer overflow"),
        ("double('1.5') + double(1)", "2.5"),
        ("string(1) + string(1.5) + string(true) + string(1u)", "11.5true1"),
        ("string(duration('1h1.5s'))", "3601.5s"),
        ("string(timestamp('2026-01-02T03:04:05.5Z'))", "2026-01-02T03:04:05.5Z"),
        ("string(b'\\xff')", "! invalid UTF-8 in bytes, cannot convert to string"),
        ("bool('true') && !bool('0')", "true"),
        ("bool('yes')", "! type conversion error from 'string' to 'bool'"),
        ("int(timestamp('1970-01-01T00:01:00Z'))", "60"),
        ("timestamp(60) == timestamp('1970-01-01T00:01:00Z')", "true"),
        ("duration('1h') > duration('59m')", "true"),
        ("duration('nope')", "? invalid duration argument"),
        ("timestamp('nope')", "? invalid timestamp argument"),
        ("timestamp('2026-01-01T00:00:00Z') + duration('24h')", "2026-01-02T00:00:00Z"),
        ("timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')", "true"),
        ("timestamp('9999-12-30T00:00:00Z') + duration('48h')", "! timestamp overflow"),
        ("timestamp('9999-12-31T23:59:59Z') > timestamp('2026-01-01T00:00:00Z')", "true"),
        ("timestamp('2026-03-04T05:06:07.008Z').getFullYear()", "2026"),
        ("timestamp('2026-03-04T05:06:07.008Z').getMonth()", "2"),
        ("timestamp('2026-03-04T05:06:07.008Z').getDate()", "4"),
        ("timestamp('2026-03-04T05:06:07.008Z').getDayOfMonth()", "3"),
        ("timestamp('2026-03-04T05:06:07.008Z').getDayOfWeek()", "3"),
        ("timestamp('2026-03-04T05:06:07.008Z').getDayOfYear()", "62"),
        ("timestamp('2026-03-04T05:06:07.008Z').getHours('+02:30')", "7"),
        ("timestamp('2026-03-04T05:06:07.008Z').getMilliseconds()", "8"),
        ("duration('90m').getHours()", "1"),
        ("duration('90m').getMinutes()", "90"),
        ("dyn(1) + 1", "2"),
        ("unknown(1)", "? undeclared reference to 'unknown' (in container '')"),
        ("size('héllo')", "5"),
        ("'abc'.size()", "3"),
        ("size(1)", "? found no matching overload for 'size' applied to '(int)'"),
        ("1.size()", "? found no matching overload for 'size' applied to 'int.()'"),
    ]);
}
