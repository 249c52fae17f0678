// What a row of a table has. Pure.
export interface Named { metadata: { name: string; namespace?: string } }
export const keyOf = (o: Named): string => (o.metadata.namespace ? `${o.metadata.namespace}/${o.metadata.name}` : o.metadata.name)
