// Text of YAML as people look at it and change it. Pure; the API itself reads and writes it.

/** Leaves out metadata.managedFields, which is the server's own bookkeeping. */
export function withoutManagedFields(text: string): string {
  let inside = false
  const kept = text.split('\n').filter((line) => {
    if (/^ {2}managedFields:/.test(line)) inside = true
    else if (inside && !/^( {2}-| {3,})/.test(line)) inside = false
    return !inside
  })
  return kept.join('\n')
}

export interface Line { kind: 'same' | 'out' | 'in'; text: string }

/** Line by line, what goes and what comes: the shortest such list (longest common subsequence). */
export function diff(before: string, after: string): Line[] {
  const [a, b] = [before.trimEnd().split('\n'), after.trimEnd().split('\n')]
  let start = 0
  while (start < a.length && start < b.length && a[start] === b[start]) start++
  let [endA, endB] = [a.length, b.length]
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) (endA--, endB--)
  const [n, m] = [endA - start, endB - start]
  const longest = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1))
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      longest[i]![j] = a[start + i] === b[start + j] ? longest[i + 1]![j + 1]! + 1 : Math.max(longest[i + 1]![j]!, longest[i]![j + 1]!)
    }
  }
  const out: Line[] = a.slice(0, start).map((text) => ({ kind: 'same', text }))
  let [i, j] = [0, 0]
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) (out.push({ kind: 'same', text: a[start + i]! }), i++, j++)
    else if (i < n && (j >= m || longest[i + 1]![j]! >= longest[i]![j + 1]!)) out.push({ kind: 'out', text: a[start + i++]! })
    else out.push({ kind: 'in', text: b[start + j++]! })
  }
  for (const text of a.slice(endA)) out.push({ kind: 'same', text })
  return out
}

/** The changed lines with some that surround them. */
export function hunks(lines: Line[], around = 3): Line[] {
  const near = (at: number): boolean => lines.slice(Math.max(0, at - around), at + around + 1).some((l) => l.kind !== 'same')
  return lines.filter((_, at) => near(at))
}
