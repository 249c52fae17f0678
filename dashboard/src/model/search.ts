// How well a text fits a few letters: 0 not at all. Pure.
export function score(query: string, text: string): number {
  const lower = text.toLowerCase()
  let sum = 0
  for (const word of query.toLowerCase().split(/\s+/).filter(Boolean)) {
    const at = lower.indexOf(word)
    if (at >= 0) sum += at === 0 ? 100 : /[\s\-./]/.test(lower[at - 1]!) ? 60 : 30
    else {
      // Letters in order, with others between.
      let from = 0
      for (const letter of word) {
        from = lower.indexOf(letter, from) + 1
        if (!from) return 0
      }
      sum += 5
    }
  }
  return sum - lower.length / 1000
}
