/** Sizes in bytes as people read them. */

/** `1.4 GiB`: three figures at most, and the binary unit that they need. */
export function byteSize(count: number | bigint): string {
	const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
	let value = Number(count);
	let unit = 0;
	while (value >= 1000 && unit < units.length - 1) {
		value /= 1024;
		unit++;
	}

	const digits =
		unit === 0 || value >= 100
			? String(Math.round(value))
			: value.toFixed(value >= 10 ? 1 : 2).replace(/\.?0+$/v, '');
	return `${digits} ${units[unit] ?? ''}`;
}
