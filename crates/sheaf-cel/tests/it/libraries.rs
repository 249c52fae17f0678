//! The libraries that Kubernetes adds.

use super::check;

#[test]
fn strings() {
    check(&[
        ("'tacocat'.charAt(3)", "o"),
        ("'abc'.charAt(3)", ""),
        ("'abc'.charAt(4)", "! index out of range: 4"),
        ("'hello mellow'.indexOf('ello')", "1"),
        ("'hello mellow'.indexOf('ello', 2)", "7"),
        ("'hello mellow'.lastIndexOf('ello')", "7"),
        ("'hello mellow'.lastIndexOf('ello', 6)", "1"),
        ("'hello'.indexOf('')", "0"),
        ("'hello'.indexOf('x')", "-1"),
        ("['a', 'b'].join() + ['a', 'b'].join('-')", "aba-b"),
        ("'TacoCÆt'.lowerAscii() + 'TacoCÆt'.upperAscii()", "tacocÆtTACOCÆT"),
        ("'hello hello'.replace('he', 'we')", "wello wello"),
        ("'hello hello'.replace('he', 'we', 1)", "wello hello"),
        ("'hello hello'.replace('he', 'we', 0)", "hello hello"),
        ("'ab'.replace('', '_')", "_a_b_"),
        ("'a b c'.split(' ')", r#"["a", "b", "c"]"#),
        ("'a b c'.split(' ', 2)", r#"["a", "b c"]"#),
        ("'a b c'.split(' ', 0)", "[]"),
        ("'abc'.split('')", r#"["a", "b", "c"]"#),
        ("'tacocat'.substring(4)", "cat"),
        ("'tacocat'.substring(0, 4)", "taco"),
        ("'tacocat'.substring(4, 0)", "! invalid substring range. start: 4, end: 0"),
        ("'tacocat'.substring(9)", "! index out of range: 9"),
        ("'  a '.trim()", "a"),
        ("'gums'.reverse()", "smug"),
        ("'abc'.contains('bc') && 'abc'.startsWith('a') && 'abc'.endsWith('c')", "true"),
        (
            "'%s is %d, %.2f, %b, %x, %X, %o, %%'.format(['a', 5, 1.005, 5, 255, 'hi', 8])",
            "a is 5, 1.00, 101, ff, 6869, 10, %",
        ),
        ("'%s %s %s'.format([['x', 'a'], {'k': true}, null])", r#"["x", "a"] {"k": true} null"#),
        ("'%e'.format([1234.5])", "1.234500e+03"),
        ("'%s'.format([])", "! index 0 out of range"),
        ("strings.quote('a\"b\\n')", r#""a\"b\n""#),
    ]);
}

#[test]
fn lists_and_sets() {
    check(&[
        ("[1, 2, 2].isSorted() && !['b', 'a'].isSorted()", "true"),
        ("[1, 2].sum()", "3"),
        ("[1.5, 2.0].sum()", "3.5"),
        ("[duration('1s'), duration('2s')].sum() == duration('3s')", "true"),
        ("[3, 1].min() + [3, 1].max()", "4"),
        ("['b', 'a'].min()", "a"),
        ("self.list.filter(x, x > 9).min()", "! min called on empty list"),
        ("[1, 2, 1].indexOf(1)", "0"),
        ("[1, 2, 1].lastIndexOf(1)", "2"),
        ("[1].indexOf(5)", "-1"),
        ("[{'a': 1}].sum()", "? found no matching overload for 'sum' applied to 'list(map(string, int)).()'"),
        ("sets.contains([1, 2, 3], [3, 1])", "true"),
        ("sets.equivalent([1, 1, 2], [2, 1])", "true"),
        ("sets.intersects([1], [2])", "false"),
    ]);
}

#[test]
fn patterns() {
    check(&[
        ("'abc'.matches('^a.c$')", "true"),
        ("matches('abc', 'b')", "true"),
        ("'abc'.matches('[')", "? invalid matches argument"),
        ("'abc 123'.find('[0-9]+')", "123"),
        ("'abc'.find('[0-9]+')", ""),
        ("'123 abc 456'.findAll('[0-9]+')", r#"["123", "456"]"#),
        ("'123 abc 456'.findAll('[0-9]+', 1)", r#"["123"]"#),
        ("'abc'.matches(self.text)", "false"),
    ]);
}

#[test]
fn urls() {
    check(&[
        ("url('https://example.com:80/path?k=v&k=w').getHost()", "example.com:80"),
        ("url('https://example.com:80/').getHostname()", "example.com"),
        ("url('https://[::1]:80/').getHostname() + ' ' + url('https://[::1]:80/').getPort()", "::1 80"),
        ("url('https://example.com/with space/').getEscapedPath()", "/with%20space/"),
        ("url('https://example.com/p?k=v&k=w%20x').getQuery()", r#"{"k": ["v", "w x"]}"#),
        ("url('/path').getScheme()", ""),
        ("isURL('https://a.b')", "true"),
        ("isURL('../relative')", "false"),
        ("isURL('mailto:a@b')", "false"),
        ("url('HTTPS://a').getScheme()", "https"),
        ("url('https://a.b').getEscapedPath()", ""),
    ]);
}

#[test]
fn addresses() {
    check(&[
        ("ip('192.168.0.1').family() + ip('::1').family()", "10"),
        ("isIP('192.168.0.1') && !isIP('192.168.0.256') && !isIP('01.2.3.4')", "true"),
        ("isIP('::ffff:1.2.3.4')", "false"),
        ("ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')", "true"),
        ("ip('127.0.0.1').isLoopback() && ip('0.0.0.0').isUnspecified()", "true"),
        ("ip('224.0.0.1').isLinkLocalMulticast() && ip('fe80::1').isLinkLocalUnicast()", "true"),
        ("ip('8.8.8.8').isGlobalUnicast() && !ip('255.255.255.255').isGlobalUnicast()", "true"),
        ("string(ip('2001:DB8::1'))", "2001:db8::1"),
        ("ip('1.1.1.1') == ip('1.1.1.1')", "true"),
        ("cidr('192.168.0.0/24').containsIP('192.168.0.9')", "true"),
        ("cidr('192.168.0.0/24').containsIP(ip('192.168.1.9'))", "false"),
        ("cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25')", "true"),
        ("cidr('192.168.0.0/24').containsCIDR(cidr('192.168.0.0/23'))", "false"),
        ("cidr('0.0.0.0/0').containsIP('9.9.9.9')", "true"),
        (
            "string(cidr('192.168.1.5/24').masked()) + ' ' + string(cidr('192.168.1.5/24').ip())",
            "192.168.1.0/24 192.168.1.5",
        ),
        ("cidr('::1/128').prefixLength()", "128"),
        ("isCIDR('192.168.0.0/33')", "false"),
        ("isCIDR('10.0.0.0/8')", "true"),
        ("type(ip('1.1.1.1')) == net.IP", "true"),
    ]);
}

#[test]
fn quantities_and_versions() {
    check(&[
        ("quantity('1.5Gi').isGreaterThan(quantity('1Gi'))", "true"),
        (
            "quantity('50k').add('20k')",
            "? found no matching overload for 'add' applied to 'kubernetes.Quantity.(string)'",
        ),
        ("quantity('50k').add(quantity('20k')) == quantity('70k')", "true"),
        ("quantity('50k').sub(20000).compareTo(quantity('30k'))", "0"),
        ("quantity('50Mi').asInteger()", "52428800"),
        ("quantity('50m').isInteger()", "false"),
        ("quantity('50m').asInteger()", "! cannot convert value to integer"),
        ("quantity('50m').asApproximateFloat()", "0.05"),
        ("quantity('-1').sign()", "-1"),
        ("isQuantity('1.3Gi') && !isQuantity('1.3GiB')", "true"),
        (
            "quantity('x')",
            "! quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", "true"),
        ("semver('1.0.0-alpha').compareTo(semver('1.0.0'))", "-1"),
        ("semver('1.0.0-alpha.1').isLessThan(semver('1.0.0-alpha.beta'))", "true"),
        ("isSemver('v1.0') || isSemver('1.0') || isSemver('01.0.0')", "false"),
        ("semver('v1.0', true).minor()", "0"),
        ("semver('1.2.3').major() + semver('1.2.3').patch()", "4"),
        ("isSemver('1.0.0+build.1')", "true"),
    ]);
}

#[test]
fn formats() {
    check(&[
        ("!format.dns1123Label().validate('my-name').hasValue()", "true"),
        ("format.dns1123Label().validate('My').value().size()", "1"),
        ("format.named('dns1123Label').value().validate('a') == optional.none()", "true"),
        ("format.named('nope').hasValue()", "false"),
        ("format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()", "false"),
        ("format.date().validate('2026-13-01').value()", r#"["invalid date"]"#),
        ("format.dns1123LabelPrefix().validate('my-').hasValue()", "false"),
        ("format.uri().validate('http://a').hasValue()", "false"),
        ("format.byte().validate('!').value()", r#"["invalid base64"]"#),
    ]);
}

mod authorizer {
    use sheaf_cel::authorizer::{Authorizer, Authz, Decision, Question};
    use sheaf_cel::{Decl, Env, Opaque, Type};

    struct Only(&'static str);
    impl Authorizer for Only {
        fn check(&self, question: &Question) -> Decision {
            let asked = format!("{question:?}");
            Decision { allowed: question.verb == self.0, reason: asked, error: String::new() }
        }
    }

    #[test]
    fn asks_the_caller() {
        let env = Env::new()
            .with("authorizer", Decl::of(Type::Opaque(Opaque::Authorizer)))
            .with("authorizer.requestResource", Decl::of(Type::Opaque(Opaque::ResourceCheck)));
        let who = Only("get");
        let request = Question { resource: "pods".into(), ..Question::default() };
        let variables = [
            ("authorizer", Authz::value(&who)),
            ("authorizer.requestResource", Authz::resource(&who, request)),
        ];
        for (text, wanted) in [
            ("authorizer.group('').resource('pods').namespace('a').check('get').allowed()", "true"),
            ("authorizer.path('/healthz').check('post').allowed()", "false"),
            ("authorizer.requestResource.check('get').allowed()", "true"),
            (
                "authorizer.serviceAccount('ns', 'sa').path('/x').check('get').reason().contains('(\"ns\", \"sa\")')",
                "true",
            ),
            ("authorizer.group('').resource('pods').labelSelector('a=b').check('get').errored()", "false"),
        ] {
            let program = env.compile(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let run = program.evaluate(&variables, 1_000_000);
            assert_eq!(run.result.unwrap().show(), wanted, "{text}");
            assert!(run.cost >= 350_000, "a check is dear");
        }
        assert!(super::super::env().compile("authorizer.path('/').check('get').allowed()").is_err());
    }
}
