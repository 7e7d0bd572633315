/** IPv4 prefixes as text and as numbers. */

/** Whether `address` lies in `prefix`, `a.b.c.d/n`. */
export function prefixContains(prefix: string, address: string): boolean {
	const [network = '', length = '32'] = prefix.split('/');
	const size = 2 ** (32 - Number(length));
	return Math.floor(toNumber(network) / size) === Math.floor(toNumber(address) / size);
}

/** The prefix with all bits of the host cleared, as routes spell it. */
export function networkOf(prefix: string): string {
	const [address = '', length = '32'] = prefix.split('/');
	const size = 2 ** (32 - Number(length));
	return `${toText(Math.floor(toNumber(address) / size) * size)}/${length}`;
}

function toNumber(address: string): number {
	return address.split('.').reduce((value, part) => value * 256 + Number(part), 0);
}

function toText(value: number): string {
	return [24, 16, 8, 0].map(shift => Math.floor(value / 2 ** shift) % 256).join('.');
}
