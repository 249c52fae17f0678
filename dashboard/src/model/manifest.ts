// Objects as manifests, and the commands that apply them. Pure.
import { stringify } from 'yaml'

export const manifest = (objects: object[]): string => objects.map((o) => stringify(o, { lineWidth: 0 })).join('---\n')

/** A text for a shell, as one word. */
export const quoted = (text: string): string => (/^[\w./:=@%+,-]+$/.test(text) ? text : `'${text.replace(/'/g, `'\\''`)}'`)

export const kubectl = (verb: string, objects: object[]): string => `kubectl ${verb} -f - <<'EOF'\n${manifest(objects)}EOF`
